"""DeiT-T with MergeMix on CIFAR-100 at 224 px, 600 epochs."""

_base_ = './deit-tiny_1xb100-mergemix-coslr-200e_cifar100.py'

train_cfg = dict(max_epochs=600)

param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], eta_min=1e-6)]
