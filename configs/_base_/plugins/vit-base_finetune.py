"""Turns a config that fine-tunes DeiT-S into one of ViT-B from MMPretrain's ImageNet-21k and 1k weights.

The part has a name of its own, since MMEngine does not let two bases hold `model`. Below the `_base_` list:

    model = _base_.vit_base
"""

# Trained at 384 px; MMPretrain resizes its position embedding to the 224 px used here.
weights = (
    'https://mmassets.onedl.ai/mmclassification/v0/vit/finetune/'
    'vit-base-p16_in21k-pre-3rdparty_ft-64xb64_in1k-384_20210928-98e8652b.pth'
)

vit_base = dict(backbone=dict(arch='base', init_cfg=dict(checkpoint=weights)), head=dict(in_channels=768))
