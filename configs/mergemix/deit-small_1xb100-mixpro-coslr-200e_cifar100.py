"""DeiT-S with MixPro on CIFAR-100 at 224 px, Mixup beside it as in OpenMixup's deit_s_mixpro."""

_base_ = './deit-small_1xb100-coslr-200e_cifar100.py'

model = dict(train_cfg=dict(augments=[dict(type='MixPro', alpha=1.0), dict(type='Mixup', alpha=1.0)], probs=[0.8, 0.2]))
