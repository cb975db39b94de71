"""ViT-L (1024 wide, 24 layers) on CIFAR-100 at 224 px without mixing."""

_base_ = './deit-small_1xb100-coslr-200e_cifar100.py'

model = dict(backbone=dict(arch='large'), head=dict(in_channels=1024))

optim_wrapper = dict(optimizer=dict(lr=2e-4))
