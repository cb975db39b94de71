"""A linear probe on the encoders of a trained tiny SPHINX, mixed and frozen: drawn shapes, a minute on a CPU."""

_base_ = ['../../../configs/_base_/models/tiny-sphinx_shapes.py', '../../../configs/_base_/runtimes/default_runtime.py']

custom_imports = dict(
    imports=[
        'mergemix_mm',
        'projects.visual_recognition.models.sphinx_vision',
        'projects.visual_recognition.models.shapes_classes',
    ],
    allow_failed_imports=False,
)

num_classes = 36
model = dict(
    _delete_=True,
    type='ImageClassifier',
    data_preprocessor=dict(num_classes=num_classes, mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True),
    backbone=dict(
        type='MultiBackbone', encoders=[dict(one, frozen=True) for one in _base_.model.vlm.backbone.encoders]
    ),
    neck=[_base_.model.vlm.neck, dict(type='TokenMean')],
    head=dict(type='LinearClsHead', num_classes=num_classes, in_channels=128),
)

shapes = dict(
    type='ShapesTaskDataset',
    task='classification',
    pipeline=[dict(type='ShapesToClasses'), dict(type='PackInputs')],
)
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    dataset=dict(shapes, length=2000),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    dataset=dict(shapes, seed=1, length=1000),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='Accuracy', topk=(1,))
test_dataloader, test_evaluator = val_dataloader, val_evaluator

max_epochs = 10
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=3e-3, weight_decay=0.01))
param_scheduler = dict(type='CosineAnnealingLR', by_epoch=True, end=max_epochs, convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=max_epochs)
val_cfg, test_cfg = dict(), dict()

custom_hooks = [
    dict(type='StepSeedHook'),
    dict(
        type='LoadSphinxVisionHook',
        pretrained='work_dirs/tiny-sphinx_1xb16-tasks-coslr-600i_shapes/pretrained',
    ),
]
randomness = dict(seed=0)
