"""ViT-B with MergeMix on FGVC-Aircraft, scored at the last layer, from pre-trained weights."""

_base_ = [
    '../_base_/models/vit-base_mergemix_finetune.py',
    '../_base_/datasets/fgvcaircraft_bs16_224.py',
    '../_base_/schedules/adamw_bs16_finetune_200e.py',
    '../_base_/default_runtime.py',
]

model = dict(head=dict(num_classes=100), train_cfg=dict(augments=[dict(type='MergeMix', layer=12)]))
