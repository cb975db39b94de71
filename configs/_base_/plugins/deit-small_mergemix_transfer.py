"""A DeiT-S trained with MergeMix as the backbone of a detector, under a name of its own, for any config of MMDetection:

model = dict(backbone=dict(_delete_=True, **_base_.mergemix_backbone))
"""

custom_imports = dict(imports=['mergemix_mm'], allow_failed_imports=False)

# Made from the checkpoint of the classifier by tools/model_converters/classifier_to_backbone.py.
checkpoint = 'work_dirs/deit-small_4xb256-mergemix-coslr-300e_in1k/backbone.pth'

mergemix_backbone = dict(
    type='mmpretrain.VisionTransformer',
    arch='deit-small',
    img_size=1024,  # Of the position embedding; images of other sizes get it resized.
    patch_size=16,
    drop_path_rate=0.1,
    out_type='featmap',
    init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
)

custom_hooks = [dict(type='StepSeedHook')]
