"""The tiny Mask R-CNN with 30% of the patches merged in the backbone, in training and test (arXiv 2210.09461)."""

_base_ = './tiny-mask-rcnn-vit_1xb16-scratch-coslr-6e_shapes.py'

model = dict(backbone=dict(type='ToMeVisionTransformer', num_merge=0.3))
