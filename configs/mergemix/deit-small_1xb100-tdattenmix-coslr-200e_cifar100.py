"""DeiT-S with TdAttenMix on CIFAR-100 at 224 px, Mixup beside it as in the authors' code (main.py)."""

_base_ = './deit-small_1xb100-coslr-200e_cifar100.py'

model = dict(train_cfg=dict(augments=[dict(type='TdAttenMix'), dict(type='Mixup', alpha=0.8)], probs=[0.5, 0.5]))
