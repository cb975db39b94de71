"""Mask R-CNN on a small plain ViT from scratch, on drawn shapes: minutes on a CPU, no download; needs compiled ops."""

_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', '../_base_/common/tiny_detection.py']

# Strides of a simple pyramid on patches of 8 pixels.
strides = [2, 4, 8, 16]
roi_extractor = dict(out_channels=64, featmap_strides=strides, finest_scale=14)
model = dict(
    backbone=dict(_delete_=True, **_base_.tiny_backbone),
    neck=dict(_delete_=True, type='SimpleFeaturePyramid', in_channels=64, out_channels=64, num_outs=4),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4], strides=strides)),
    roi_head=dict(
        bbox_roi_extractor=roi_extractor,
        bbox_head=dict(in_channels=64, fc_out_channels=128, num_classes=6),
        mask_roi_extractor=roi_extractor,
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64, num_classes=6),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=32)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=50), rcnn=dict(max_per_img=20)),
)
