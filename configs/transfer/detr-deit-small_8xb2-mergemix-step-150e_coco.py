"""DETR on the single feature map of a DeiT-S trained with MergeMix; needs no compiled ops."""

_base_ = ['mmdet::detr/detr_r50_8xb2-150e_coco.py', '../_base_/plugins/deit-small_mergemix_transfer.py']

custom_imports = dict(imports=['mergemix_mm', 'mergemix_mm.missing_ops'], allow_failed_imports=False)

model = dict(
    backbone=dict(_delete_=True, **_base_.mergemix_backbone),
    neck=dict(in_channels=[384]),
)

optim_wrapper = dict(
    constructor='BackboneLayerDecayConstructor', paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.7)
)
