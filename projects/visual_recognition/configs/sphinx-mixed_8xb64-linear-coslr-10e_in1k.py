"""A linear probe on SPHINX' four encoders, mixed and frozen, on ImageNet-1k; the schedule is our choice."""

_base_ = [
    '../../../configs/_base_/models/sphinx-7b.py',
    'mmpretrain::_base_/datasets/imagenet_bs32_pil_bicubic.py',
    '../../../configs/_base_/runtimes/default_runtime.py',
]

custom_imports = dict(
    imports=[
        'mergemix_mm',
        'projects.visual_recognition.models.sphinx_vision',
    ],
    allow_failed_imports=False,
)

model = dict(
    _delete_=True,
    type='ImageClassifier',
    backbone=_base_.model.vlm.backbone,
    neck=[_base_.model.vlm.neck, dict(type='TokenMean')],
    head=dict(type='LinearClsHead', num_classes=1000, in_channels=4096),
)
data_preprocessor = dict(
    mean=[255 * value for value in _base_.model.vlm.backbone.mean],
    std=[255 * value for value in _base_.model.vlm.backbone.std],
)
train_dataloader = dict(batch_size=64)
val_dataloader = dict(batch_size=64)
test_dataloader = val_dataloader

max_epochs = 10
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.01))
param_scheduler = dict(type='CosineAnnealingLR', by_epoch=True, end=max_epochs, convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs=max_epochs)
val_cfg, test_cfg = dict(), dict()
auto_scale_lr = dict(base_batch_size=512)

# The neck of a trained SPHINX; without this hook, it starts from random weights.
custom_hooks = [
    dict(type='StepSeedHook'),
    dict(type='LoadSphinxVisionHook', pretrained='work_dirs/sphinx-7b_16xb8-tasks-coslr-20000i-fsdp_mix/pretrained'),
]
