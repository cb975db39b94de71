"""ViT-B with MergeMix on CUB-200-2011, from pre-trained weights."""

_base_ = [
    '../_base_/models/vit-base_mergemix_finetune.py',
    '../_base_/datasets/cub_bs16_224.py',
    '../_base_/schedules/adamw_bs16_finetune_200e.py',
    '../_base_/default_runtime.py',
]

model = dict(head=dict(num_classes=200))
