"""What the tiny detectors on drawn shapes share: backbones, data, schedule of 6 epochs, and MMDetection's runtime."""

_base_ = [
    'mmdet::_base_/default_runtime.py',
    '../datasets/shapes-coco_bs16.py',
    '../plugins/step_seed.py',
    '../plugins/tiny_backbones.py',
]

custom_imports = dict(imports=['mergemix_mm'], allow_failed_imports=False)

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
)
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=6, val_interval=6)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=1, convert_to_iter_based=True),
]

default_hooks = dict(logger=dict(interval=21), checkpoint=dict(max_keep_ckpts=2))
randomness = dict(seed=0)
