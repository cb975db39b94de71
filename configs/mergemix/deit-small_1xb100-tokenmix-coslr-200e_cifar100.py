"""DeiT-S with TokenMix on CIFAR-100 at 224 px; the maps are the attention of the backbone, not those of a teacher."""

_base_ = './deit-small_1xb100-coslr-200e_cifar100.py'

model = dict(train_cfg=dict(augments=[dict(type='TokenMix')]))
