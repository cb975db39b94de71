"""DeiT-T on CIFAR-100 at 224 px without mixing."""

_base_ = './deit-small_1xb100-coslr-200e_cifar100.py'

model = dict(backbone=dict(arch='deit-tiny'), head=dict(in_channels=192))
