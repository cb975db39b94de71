"""DeiT-S on CUB-200-2011 without mixing, from pre-trained weights."""

_base_ = ['../_base_/common/deit-small_finetune.py', '../_base_/datasets/cub_bs16_224.py']

model = dict(head=dict(num_classes=200))
