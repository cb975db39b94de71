"""DeiT-S on ImageNet-1k without mixing, 300 epochs, 5 of them warm-up."""

_base_ = [
    'mmpretrain::deit/deit-small_4xb256_in1k.py',
    '../_base_/plugins/mergemix.py',
    '../_base_/plugins/mixers.py',
    '../_base_/plugins/step_seed.py',
]

# The base mixes with Mixup and CutMix.
model = dict(type='MixupClassifier', backbone=dict(drop_path_rate=0.1), train_cfg=dict(_delete_=True))

warmup_epochs = 5
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-5, by_epoch=True, end=warmup_epochs, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=warmup_epochs, convert_to_iter_based=True),
]
