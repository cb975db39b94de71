"""ViT-B with MergeMix on CUB-200-2011, from pre-trained weights."""

_base_ = './vit-base_1xb16-coslr-200e_cub.py'

model = _base_.mergemix_paper_plain

optim_wrapper = _base_.two_losses
