"""ViT-B with ResizeMix on CIFAR-100 at 224 px, 600 epochs."""

_base_ = './vit-base_1xb100-resizemix-coslr-200e_cifar100.py'

train_cfg = dict(max_epochs=600)
