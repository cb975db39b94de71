"""DeiT-S with MergeMix on CUB-200-2011, from pre-trained weights."""

_base_ = ['../_base_/common/deit-small_mergemix_finetune.py', '../_base_/datasets/cub_bs16_224.py']

model = dict(head=dict(num_classes=200), train_cfg=dict(augments=[dict(type='MergeMix', num_merge=147)]))
