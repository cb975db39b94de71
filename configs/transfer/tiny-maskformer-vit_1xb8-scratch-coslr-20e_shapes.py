"""MaskFormer (arXiv 2107.06278) on a simple pyramid over a small plain ViT from scratch, on drawn shapes.

It needs no compiled ops. The shapes are things, and there is no stuff. Its instances are scored, since the panoptic
metric needs panopticapi, which is not on PyPI.
"""

_base_ = '../_base_/common/tiny_detection_20e.py'

width = 64
attention = dict(embed_dims=width, num_heads=4, batch_first=True)
feed_forward = dict(embed_dims=width, feedforward_channels=128)
position = dict(num_feats=32, normalize=True)
model = dict(
    type='MaskFormer',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=16,
        pad_mask=True,
    ),
    backbone=_base_.tiny_backbone,
    neck=dict(type='SimpleFeaturePyramid', in_channels=64, out_channels=width, num_outs=4),
    panoptic_head=dict(
        type='MaskFormerHead',
        in_channels=[width] * 4,
        feat_channels=width,
        out_channels=width,
        num_things_classes=6,
        num_stuff_classes=0,
        num_queries=20,
        pixel_decoder=dict(
            type='TransformerEncoderPixelDecoder',
            norm_cfg=dict(type='GN', num_groups=8),
            act_cfg=dict(type='ReLU'),
            encoder=dict(num_layers=1, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=feed_forward)),
            positional_encoding=position,
        ),
        enforce_decoder_input_project=False,
        positional_encoding=position,
        transformer_decoder=dict(
            num_layers=3,
            layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=feed_forward),
            return_intermediate=True,
        ),
        loss_cls=dict(type='CrossEntropyLoss', class_weight=[1.0] * 6 + [0.1]),
        loss_mask=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=20.0),
        loss_dice=dict(type='DiceLoss', use_sigmoid=True, activate=True, naive_dice=True, eps=1.0),
    ),
    panoptic_fusion_head=dict(type='MaskFormerFusionHead', num_things_classes=6, num_stuff_classes=0),
    train_cfg=dict(
        assigner=dict(
            type='HungarianAssigner',
            match_costs=[
                dict(type='ClassificationCost', weight=1.0),
                dict(type='FocalLossCost', weight=20.0, binary_input=True),
                dict(type='DiceCost', weight=1.0, pred_act=True, eps=1.0),
            ],
        ),
        sampler=dict(type='MaskPseudoSampler'),
    ),
    test_cfg=dict(panoptic_on=True, semantic_on=False, instance_on=True, max_per_image=20, object_mask_thr=0.8),
)
