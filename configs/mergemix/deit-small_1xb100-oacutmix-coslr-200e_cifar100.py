"""DeiT-S with OA-CutMix on CIFAR-100 at 224 px; attention finds the objects, as CIFAR-100 has no masks."""

_base_ = './deit-small_1xb100-coslr-200e_cifar100.py'

model = dict(train_cfg=dict(augments=[dict(type='OACutMix', alpha=1.0)]))
