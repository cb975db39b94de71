"""DeiT-T with Mixup or CutMix, drawn evenly, on CIFAR-100 at 224 px, 600 epochs."""

_base_ = './deit-tiny_1xb100-mixup-cutmix-coslr-200e_cifar100.py'

train_cfg = dict(max_epochs=600)
