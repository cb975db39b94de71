"""ViT-B with MergeMix on CIFAR-100 under the name that it has in the release: DeiT-B."""

_base_ = './vit-base_1xb100-mergemix-coslr-200e_cifar100.py'

model = dict(backbone=dict(arch='deit-base'))
