"""DeiT-S with MergeMix on ImageNet-1k, 300 epochs: 5 of them warm-up, a quarter of the tokens merged to score."""

_base_ = [
    'mmpretrain::deit/deit-small_4xb256_in1k.py',
    '../_base_/plugins/mergemix.py',
    '../_base_/plugins/step_seed.py',
]

model = dict(
    type=_base_.mergemix.type,
    backbone=dict(drop_path_rate=0.1),
    train_cfg=dict(_delete_=True, augments=[dict(type='MergeMix', num_merge=49)]),
)

warmup_epochs = 5
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-5, by_epoch=True, end=warmup_epochs, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=warmup_epochs, convert_to_iter_based=True),
]
