"""DeiT-S with MergeMix as released: a Mixup batch in place of the clean images, labels by the batch's mean ratio."""

_base_ = './deit-small_1xb100-coslr-200e_cifar100.py'

model = _base_.mergemix_released

param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], eta_min=0.0)]
