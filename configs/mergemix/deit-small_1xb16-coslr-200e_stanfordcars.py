"""DeiT-S on Stanford Cars without mixing, from pre-trained weights."""

_base_ = ['../_base_/common/deit-small_finetune.py', '../_base_/datasets/stanfordcars_bs16_224.py']

model = dict(head=dict(num_classes=196))
