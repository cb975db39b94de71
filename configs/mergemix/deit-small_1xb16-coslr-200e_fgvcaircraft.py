"""DeiT-S on FGVC-Aircraft without mixing, from pre-trained weights."""

_base_ = ['../_base_/common/deit-small_finetune.py', '../_base_/datasets/fgvcaircraft_bs16_224.py']

model = dict(head=dict(num_classes=100))
