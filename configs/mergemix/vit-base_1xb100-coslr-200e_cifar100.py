"""ViT-B, the DeiT-B of the release, on CIFAR-100 at 224 px without mixing."""

_base_ = './deit-small_1xb100-coslr-200e_cifar100.py'

model = dict(backbone=dict(arch='base'), head=dict(in_channels=768))

optim_wrapper = dict(optimizer=dict(lr=5e-4))

param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], eta_min=0.0)]
