"""ViT-B from MMPretrain's ImageNet-21k and 1k weights, to be fine-tuned with MergeMix."""

_base_ = './deit-small_mergemix_finetune.py'

# Trained at 384 px; MMPretrain resizes its position embedding to the 224 px used here.
checkpoint = (
    'https://mmassets.onedl.ai/mmclassification/v0/vit/finetune/'
    'vit-base-p16_in21k-pre-3rdparty_ft-64xb64_in1k-384_20210928-98e8652b.pth'
)

model = dict(backbone=dict(arch='base', init_cfg=dict(checkpoint=checkpoint)), head=dict(in_channels=768))
