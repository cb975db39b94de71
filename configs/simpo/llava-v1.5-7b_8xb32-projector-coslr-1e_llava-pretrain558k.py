"""Stage 1 of LLaVA-v1.5: only the projector trains; the language model is frozen."""

_base_ = [
    '../_base_/models/llava-v1.5-7b.py',
    '../_base_/datasets/llava-pretrain_bs32.py',
    '../_base_/schedules/adamw_vlm_1e.py',
    '../_base_/runtimes/vlm_runtime.py',
]

# Vicuna, CLIP and a new projector: tools/model_converters/compose_llava.py writes this folder.
pretrained = 'work_dirs/llava-v1.5-7b-init'
processor = dict(pretrained_model_name_or_path=pretrained)

model = dict(
    vlm=dict(pretrained=pretrained, dtype='bfloat16', trainable=['projector'], gradient_checkpointing=False),
    processor=processor,
)
# A caption follows its image directly, without a question.
train_dataloader = dict(
    dataset=dict(pipeline=[dict(_base_.encode, chat_template='plain', processor=dict(_base_.processor, **processor))])
)

max_iters = 2181  # 558,128 pairs in batches of 256.
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=65),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=65, end=max_iters),
]
train_cfg = dict(max_iters=max_iters)
auto_scale_lr = dict(base_batch_size=256)
# Every batch has images, so the projector always has a gradient.
find_unused_parameters = False
