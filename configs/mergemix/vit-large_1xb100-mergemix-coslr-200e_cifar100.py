"""ViT-L, scored at the eighteenth of its 24 layers, with MergeMix on CIFAR-100 at 224 px; no merging in training."""

_base_ = './vit-large_1xb100-coslr-200e_cifar100.py'

model = _base_.mergemix_paper_plain

optim_wrapper = _base_.two_losses
