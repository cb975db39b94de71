"""CUB-200-2011 at 224 px, in batches of 16; the other fine-grained sets inherit its pipelines."""

_base_ = 'mmpretrain::_base_/datasets/cub_bs8_384.py'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=256),
    dict(type='RandomResizedCrop', scale=224, crop_ratio_range=(0.5, 1.0)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=256),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]

train_dataloader = dict(batch_size=16, num_workers=4, drop_last=True, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=100, num_workers=4, dataset=dict(pipeline=test_pipeline))
val_evaluator = dict(topk=(1, 5))

test_dataloader = val_dataloader
test_evaluator = val_evaluator
