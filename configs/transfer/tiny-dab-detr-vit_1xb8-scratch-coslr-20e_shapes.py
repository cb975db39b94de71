"""DAB-DETR (arXiv 2201.12329) on a small plain ViT from scratch, on drawn shapes; no download, no compiled ops.

Its queries are boxes, and it learns in minutes on a CPU.
"""

_base_ = '../_base_/common/tiny_detection_20e.py'

attention = dict(embed_dims=64, num_heads=4)
feed_forward = dict(embed_dims=64, feedforward_channels=128, act_cfg=dict(type='PReLU'))
model = dict(
    type='DABDETR',
    num_queries=40,
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    backbone=_base_.tiny_backbone,
    neck=dict(
        type='ChannelMapper',
        in_channels=[64],
        kernel_size=1,
        out_channels=64,
        act_cfg=None,
        norm_cfg=None,
        num_outs=1,
    ),
    encoder=dict(num_layers=1, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=feed_forward)),
    decoder=dict(
        num_layers=3,
        query_dim=4,
        query_scale_type='cond_elewise',
        with_modulated_hw_attn=True,
        layer_cfg=dict(
            self_attn_cfg=attention, cross_attn_cfg=dict(**attention, cross_attn=True), ffn_cfg=feed_forward
        ),
        return_intermediate=True,
    ),
    positional_encoding=dict(num_feats=32, temperature=20, normalize=True),
    bbox_head=dict(
        type='DABDETRHead',
        num_classes=6,
        embed_dims=64,
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        loss_iou=dict(type='GIoULoss', loss_weight=2.0),
    ),
    train_cfg=dict(
        assigner=dict(
            type='HungarianAssigner',
            match_costs=[
                dict(type='FocalLossCost', weight=2.0, eps=1e-8),
                dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                dict(type='IoUCost', iou_mode='giou', weight=2.0),
            ],
        )
    ),
    test_cfg=dict(max_per_img=20),
)
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
