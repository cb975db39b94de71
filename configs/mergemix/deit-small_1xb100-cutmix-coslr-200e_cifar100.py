"""Baseline to compare MergeMix with: DeiT-S with CutMix."""

_base_ = './deit-small_1xb100-mergemix-coslr-200e_cifar100.py'

model = dict(train_cfg=dict(augments=[dict(type='CutMix', alpha=1.0)]))
