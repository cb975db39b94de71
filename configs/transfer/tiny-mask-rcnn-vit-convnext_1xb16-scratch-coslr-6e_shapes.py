"""The same Mask R-CNN on the mixed embeddings of a small ViT and a small ConvNeXt, both trained from scratch."""

_base_ = './tiny-mask-rcnn-vit_1xb16-scratch-coslr-6e_shapes.py'

convnext = dict(
    type='mmpretrain.ConvNeXt',
    arch=dict(depths=[1, 1, 2, 1], channels=[16, 32, 48, 64]),
    stem_patch_size=2,
    gap_before_final_norm=False,
)
model = dict(
    backbone=dict(
        _delete_=True,
        type='MultiBackbone',
        encoders=[dict(encoder=_base_.tiny_backbone, frozen=False), dict(encoder=convnext, frozen=False)],
    ),
    # The grid is that of the ViT, stride 8; the ConvNeXt has stride 16.
    neck=[
        dict(type='EmbeddingMixNeck', in_channels=[64, 64], out_channels=64, output='featmap'),
        _base_.model.neck,
    ],
)
