"""Ablation: labels mixed by the share of the visible attention."""

_base_ = './deit-small_1xb100-mergemix-coslr-200e_cifar100.py'

model = dict(train_cfg=dict(augments=[dict(type='MergeMix', ratio='attention')]))
