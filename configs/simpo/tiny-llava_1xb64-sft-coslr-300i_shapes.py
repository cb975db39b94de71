"""Supervised fine-tuning of a tiny LLaVA on drawn shapes: minutes on a CPU, no download."""

_base_ = [
    '../_base_/models/tiny-llava_shapes.py',
    '../_base_/datasets/shapes_bs64.py',
    '../_base_/runtimes/vlm_runtime.py',
]

train_dataloader = dict(dataset=dict(pipeline=[_base_.encode]))
val_dataloader = dict(dataset=dict(pipeline=[dict(_base_.encode, generate=True)]))
test_dataloader = val_dataloader

max_iters = 300
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.01),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=30, end=max_iters),
]
train_cfg = dict(by_epoch=False, max_iters=max_iters, val_interval=max_iters)
