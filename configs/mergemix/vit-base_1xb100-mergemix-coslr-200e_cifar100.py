"""ViT-B with MergeMix on CIFAR-100 at 224 px; the learning rate alone sets it apart from DeiT-B."""

_base_ = './deit-small_1xb100-mergemix-coslr-200e_cifar100.py'

model = dict(backbone=dict(arch='base'), head=dict(in_channels=768))
