"""MaskFormer on a simple pyramid over a DeiT-S trained with MergeMix; needs no compiled ops."""

_base_ = ['mmdet::maskformer/maskformer_r50_ms-16xb1-75e_coco.py', '../_base_/plugins/deit-small_mergemix_transfer.py']

custom_imports = dict(imports=['mergemix_mm', 'mergemix_mm.missing_ops'], allow_failed_imports=False)

model = dict(
    # Masks are upsampled to the whole image, which must hold whole patches and whole cells of the coarsest level.
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(_delete_=True, **_base_.mergemix_backbone),
    neck=dict(type='SimpleFeaturePyramid', in_channels=384, out_channels=256, num_outs=4),
    panoptic_head=dict(in_channels=[256] * 4),
)

optim_wrapper = dict(
    constructor='BackboneLayerDecayConstructor', paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.7)
)
