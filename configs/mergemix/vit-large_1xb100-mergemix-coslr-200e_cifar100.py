"""ViT-L (24 layers, scored at the eighteenth) with MergeMix on CIFAR-100 at 224 px."""

_base_ = './deit-small_1xb100-mergemix-coslr-200e_cifar100.py'

model = dict(backbone=dict(arch='large'), head=dict(in_channels=1024))

optim_wrapper = dict(optimizer=dict(lr=2e-4))
