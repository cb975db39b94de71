"""Ablation: the loss of a plain Mixup batch is added, as released."""

_base_ = './deit-small_1xb100-mergemix-coslr-200e_cifar100.py'

model = dict(base_augment=dict(type='Mixup', alpha=0.8))
