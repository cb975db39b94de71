"""Stage 1 of a tiny SPHINX on drawn shapes: captions and plain facts; a minute on a CPU, no download."""

_base_ = [
    '../_base_/models/tiny-sphinx_shapes.py',
    '../_base_/datasets/shapes-tasks_bs16.py',
    '../_base_/runtimes/vlm_runtime.py',
]

train_dataloader = dict(
    dataset=dict(
        tasks=dict(
            _delete_=True,
            caption=dict(_base_.tasks.caption, weight=9),
            text_only=dict(_base_.tasks.text_only, weight=1),
        ),
        pipeline=[_base_.encode],
    )
)

max_iters = 400
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', eta_min=1e-4, by_epoch=False, begin=30, end=max_iters),
]
train_cfg = dict(by_epoch=False, max_iters=max_iters)
