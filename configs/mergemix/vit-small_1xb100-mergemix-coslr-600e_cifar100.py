"""ViT-S with MergeMix on CIFAR-100 at 224 px, 600 epochs."""

_base_ = './vit-small_1xb100-mergemix-coslr-200e_cifar100.py'

train_cfg = dict(max_epochs=600)
