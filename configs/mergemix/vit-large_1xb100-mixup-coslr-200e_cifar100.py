"""ViT-L with Mixup on CIFAR-100 at 224 px."""

_base_ = './vit-large_1xb100-coslr-200e_cifar100.py'

model = _base_.mixup
