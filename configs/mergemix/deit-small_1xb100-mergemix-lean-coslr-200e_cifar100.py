"""DeiT-S with MergeMix in this project's lean scheme: a truncated scoring pass, and only the mixed images train."""

_base_ = './deit-small_1xb100-coslr-200e_cifar100.py'

model = _base_.mergemix_lean
