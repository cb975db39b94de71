"""DeiT-S with MergeMix on CIFAR-100 at 224 px."""

_base_ = './deit-small_1xb100-coslr-200e_cifar100.py'

model = _base_.mergemix_paper

optim_wrapper = _base_.two_losses

param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], eta_min=0.0)]
