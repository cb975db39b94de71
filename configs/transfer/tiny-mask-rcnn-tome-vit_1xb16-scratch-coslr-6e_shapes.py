"""The same Mask R-CNN with 30% of the patches merged inside the backbone, in training and test (arXiv 2210.09461)."""

_base_ = './tiny-mask-rcnn-vit_1xb16-scratch-coslr-6e_shapes.py'

model = dict(backbone=dict(type='ToMeVisionTransformer', num_merge=0.3))
