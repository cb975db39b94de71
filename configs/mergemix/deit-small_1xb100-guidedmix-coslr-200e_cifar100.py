"""DeiT-S with GuidedMixup (spectral residual) on CIFAR-100 at 224 px; half of the batches, as the authors do."""

_base_ = './deit-small_1xb100-coslr-200e_cifar100.py'

model = dict(train_cfg=dict(augments=[dict(type='GuidedMix')], probs=[0.5]))
