"""DeiT-S with SMMix on CIFAR-100 at 224 px, with the losses of regions and of consistency."""

_base_ = './deit-small_1xb100-coslr-200e_cifar100.py'

model = dict(train_cfg=dict(augments=[dict(type='SMMix')]))
