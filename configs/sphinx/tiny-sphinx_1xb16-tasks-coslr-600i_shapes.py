"""Stage 2 of a tiny SPHINX on drawn shapes: questions, boxes, captions and plain facts."""

_base_ = './tiny-sphinx_1xb16-grounding-coslr-1000i_shapes.py'

model = dict(vlm=dict(pretrained='work_dirs/tiny-sphinx_1xb16-grounding-coslr-1000i_shapes/pretrained'))
train_dataloader = dict(dataset=dict(tasks=dict(_delete_=True, **_base_.tasks)))

max_iters = 600
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=30, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
