"""Stage 2 of LLaVA-v1.5: supervised fine-tuning of projector and language model; the base of all SimPO configs."""

_base_ = [
    '../_base_/models/llava-v1.5-7b.py',
    '../_base_/datasets/llava-mix665k_bs16.py',
    '../_base_/schedules/adamw_vlm_1e.py',
    '../_base_/vlm_runtime.py',
]

train_dataloader = dict(dataset=dict(pipeline=[_base_.encode]))
