"""Stage 1 of a tiny SPHINX on drawn shapes: captions and plain facts; a minute on a CPU, no download."""

_base_ = [
    '../_base_/models/tiny-sphinx_shapes.py',
    '../_base_/datasets/shapes-tasks_bs16.py',
    '../_base_/schedules/adamw_tiny-vlm_300i.py',
    '../_base_/runtimes/vlm_runtime.py',
]

train_dataloader = dict(
    dataset=dict(
        tasks=dict(_delete_=True, caption=dict(_base_.tasks.caption, weight=9), text_only=_base_.tasks.text_only),
        pipeline=[_base_.encode],
    )
)

max_iters = 400
optim_wrapper = dict(optimizer=dict(betas=(0.9, 0.95)))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', eta_min=1e-4, by_epoch=False, begin=30, end=max_iters),
]
train_cfg = dict(max_iters=max_iters)
