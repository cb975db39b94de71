"""The Mask R-CNN with 30% of the patches merged in the backbone, in training and test (arXiv 2210.09461)."""

_base_ = './mask-rcnn-deit-small_32xb2-mergemix-lsj-100e_coco.py'

model = dict(backbone=dict(type='ToMeVisionTransformer', num_merge=0.3))
