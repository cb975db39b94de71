"""A DeiT-S trained with MergeMix as the backbone of any config of MMDetection. Below the `_base_` list:

model = dict(backbone=dict(_delete_=True, **_base_.mergemix_backbone))
"""

_base_ = './step_seed.py'

custom_imports = dict(imports=['mergemix_mm'], allow_failed_imports=False)

# Written by tools/model_converters/classifier_to_backbone.py from the checkpoint of the classifier.
checkpoint = 'work_dirs/deit-small_4xb256-mergemix-coslr-300e_in1k/backbone.pth'

mergemix_backbone = dict(
    type='mmpretrain.VisionTransformer',
    arch='deit-small',
    img_size=1024,  # Of the position embedding, which is resized for images of other sizes.
    patch_size=16,
    drop_path_rate=0.1,
    out_type='featmap',
    init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
)
