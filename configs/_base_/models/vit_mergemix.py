"""A vision transformer with MergeMix and the regularisation of DeiT: stochastic depth and label smoothing."""

_base_ = './vit_scratch.py'

model = _base_.mergemix
