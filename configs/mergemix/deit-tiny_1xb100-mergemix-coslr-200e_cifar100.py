"""DeiT-T with MergeMix on CIFAR-100 at 224 px."""

_base_ = './deit-tiny_1xb100-coslr-200e_cifar100.py'

model = _base_.mergemix
