"""DeiT-S with MergeMix on FGVC-Aircraft, scored at the last layer, from pre-trained weights."""

_base_ = ['../_base_/common/deit-small_mergemix_finetune.py', '../_base_/datasets/fgvcaircraft_bs16_224.py']

model = dict(head=dict(num_classes=100), train_cfg=dict(augments=[dict(type='MergeMix', layer=12)]))
