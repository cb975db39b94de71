"""Stage 2 of LLaVA-v1.5: supervised fine-tuning of projector and language model; the base of all SimPO configs."""

_base_ = [
    '../_base_/models/llava-v1.5-7b.py',
    '../_base_/datasets/llava-mix665k_bs16.py',
    '../_base_/schedules/adamw_vlm_1e.py',
    '../_base_/runtimes/vlm_runtime.py',
]

# The folder that stage 1 writes. 'llava-hf/llava-1.5-7b-hf' here would start from the finished LLaVA-1.5.
pretrained = 'work_dirs/llava-v1.5-7b_8xb32-projector-coslr-1e_llava-pretrain558k/pretrained'
processor = dict(_base_.processor, pretrained_model_name_or_path=pretrained)

model = dict(vlm=dict(pretrained=pretrained), processor=processor)
train_dataloader = dict(dataset=dict(pipeline=[dict(_base_.encode, processor=processor)]))
