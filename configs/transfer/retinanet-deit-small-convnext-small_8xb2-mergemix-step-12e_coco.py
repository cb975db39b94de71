"""RetinaNet on mixed embeddings: a DeiT-S trained with MergeMix and a ConvNeXt-S, both frozen, and one neck."""

_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', '../_base_/plugins/deit-small_mergemix_transfer.py']

convnext = (
    'https://mmassets.onedl.ai/mmclassification/v0/convnext/convnext-small_32xb128-noema_in1k_20221208-4a618995.pth'
)
model = dict(
    # Both encoders expect the mean and std of ImageNet, which RetinaNet's preprocessor applies.
    backbone=dict(
        _delete_=True,
        type='MultiBackbone',
        encoders=[
            dict(encoder=_base_.mergemix_backbone),
            dict(
                encoder=dict(
                    type='mmpretrain.ConvNeXt',
                    arch='small',
                    gap_before_final_norm=False,
                    init_cfg=dict(type='Pretrained', checkpoint=convnext, prefix='backbone.'),
                )
            ),
        ],
    ),
    # The grid is that of the DeiT, stride 16, so the levels have strides 8 to 128, as RetinaNet's anchors.
    neck=dict(
        _delete_=True,
        type='EmbeddingMixNeck',
        in_channels=[384, 768],
        out_channels=256,
        output='featmap',
        scales=(2, 1, 0.5, 0.25, 0.125),
    ),
    # A patch is centred on its position; MMDetection's default puts the anchors into the corners of cells.
    bbox_head=dict(anchor_generator=dict(center_offset=0.5)),
)

optim_wrapper = dict(_delete_=True, type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05))
