"""RetinaNet on the mixed embeddings of a small ViT and a small ConvNeXt from scratch, on drawn shapes.

The neck makes all levels that the anchors need. RetinaNet needs compiled ops.
"""

_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', '../_base_/common/tiny_detection.py']

model = dict(
    backbone=dict(_delete_=True, **_base_.tiny_mixed_backbone),
    # The grid is that of the ViT, stride 8: levels of stride 4 to 64.
    neck=dict(
        _delete_=True,
        type='EmbeddingMixNeck',
        in_channels=[64, 64],
        out_channels=64,
        output='featmap',
        scales=(2, 1, 0.5, 0.25, 0.125),
    ),
    bbox_head=dict(
        num_classes=6,
        in_channels=64,
        stacked_convs=2,
        feat_channels=64,
        anchor_generator=dict(strides=[4, 8, 16, 32, 64], center_offset=0.5),
    ),
    test_cfg=dict(nms_pre=200, max_per_img=20),
)

val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
