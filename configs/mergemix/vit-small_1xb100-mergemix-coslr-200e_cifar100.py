"""ViT-S, scored at the sixth of its 8 layers, with MergeMix on CIFAR-100 at 224 px."""

_base_ = './vit-small_1xb100-coslr-200e_cifar100.py'

model = _base_.mergemix_paper

optim_wrapper = _base_.two_losses
