"""ViT-B with MergeMix on CIFAR-100 at 224 px; the trained passes do not merge."""

_base_ = './vit-base_1xb100-coslr-200e_cifar100.py'

model = _base_.mergemix_paper_plain

optim_wrapper = _base_.two_losses

param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], eta_min=1e-6)]
