"""Ablation: random groups of merged tokens instead of salient ones."""

_base_ = './deit-small_1xb100-mergemix-coslr-200e_cifar100.py'

model = dict(train_cfg=dict(augments=[dict(type='MergeMix', mask='random', ratio='gaussian')]))
