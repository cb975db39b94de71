"""Ablation: labels mixed by the paper's Gaussian ratio, which is that of the main config."""

_base_ = './deit-small_1xb100-mergemix-coslr-200e_cifar100.py'
