"""ViT-B with MergeMix on CIFAR-100 at 224 px; it differs from DeiT-B only in the learning rate."""

_base_ = './deit-small_1xb100-mergemix-coslr-200e_cifar100.py'

model = dict(backbone=dict(arch='base'), head=dict(in_channels=768))
