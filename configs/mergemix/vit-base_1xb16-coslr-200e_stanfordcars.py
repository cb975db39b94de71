"""ViT-B on Stanford Cars without mixing, from pre-trained weights."""

_base_ = ['./deit-small_1xb16-coslr-200e_stanfordcars.py', '../_base_/plugins/vit-base_finetune.py']

model = _base_.vit_base
