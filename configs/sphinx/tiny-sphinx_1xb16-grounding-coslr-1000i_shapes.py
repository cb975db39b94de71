"""A tiny SPHINX between its stages, on boxes only: mixed with other tasks, it learns them more slowly."""

_base_ = ['./tiny-sphinx_1xb16-align-coslr-400i_shapes.py', '../_base_/datasets/shapes-grounding.py']

# From here on the encoders are frozen, as those of SPHINX.
model = dict(
    vlm=dict(
        pretrained='work_dirs/tiny-sphinx_1xb16-align-coslr-400i_shapes/pretrained',
        language_model=None,
        trainable=['projector', 'language_model'],
    )
)
train_dataloader = dict(dataset=dict(tasks=dict(_delete_=True, grounding=_base_.tasks.grounding)))
new_images = dict(
    _base_.test_dataloader.dataset,
    length=400,
    pipeline=[*_base_.test_dataloader.dataset.pipeline, dict(_base_.encode, generate=True)],
)
val_dataloader = test_dataloader = dict(_base_.test_dataloader, dataset=new_images)
val_evaluator, val_cfg = _base_.test_evaluator, dict()

max_iters = 1000
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', eta_min=1e-4, by_epoch=False, begin=30, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=250)
