"""ViT-L with Mixup on CIFAR-100 at 224 px, 600 epochs."""

_base_ = './vit-large_1xb100-mixup-coslr-200e_cifar100.py'

train_cfg = dict(max_epochs=600)
