"""The tiny Mask R-CNN on the mixed embeddings of a small ViT and a small ConvNeXt, both trained from scratch."""

_base_ = './tiny-mask-rcnn-vit_1xb16-scratch-coslr-6e_shapes.py'

model = dict(
    backbone=dict(_delete_=True, **_base_.tiny_mixed_backbone),
    neck=[
        dict(type='EmbeddingMixNeck', in_channels=[64, 64], out_channels=64, output='featmap'),
        _base_.model.neck,
    ],
)
