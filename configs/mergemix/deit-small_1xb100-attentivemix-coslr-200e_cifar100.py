"""DeiT-S with AttentiveMix on CIFAR-100 at 224 px."""

_base_ = './deit-small_1xb100-coslr-200e_cifar100.py'

model = dict(train_cfg=dict(augments=[dict(type='AttentiveMix')]))
