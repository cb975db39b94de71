"""DeiT-S with MergeMix on Stanford Cars, from pre-trained weights."""

_base_ = [
    '../_base_/models/deit-small_mergemix_finetune.py',
    '../_base_/datasets/stanfordcars_bs16_224.py',
    '../_base_/schedules/adamw_bs16_finetune_200e.py',
    '../_base_/default_runtime.py',
]

model = dict(head=dict(num_classes=196))
