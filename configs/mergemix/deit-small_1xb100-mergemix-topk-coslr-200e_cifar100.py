"""Ablation: the mask is chosen without merging."""

_base_ = './deit-small_1xb100-mergemix-coslr-200e_cifar100.py'

model = dict(
    backbone=dict(num_merge=0),
    train_cfg=dict(augments=[dict(type='MergeMix', mask='topk', ratio='gaussian')]),
)
