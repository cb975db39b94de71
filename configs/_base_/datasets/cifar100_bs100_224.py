"""CIFAR-100 enlarged to 224 px, batches of 100; crops of the MergeMix release, RandAugment of DeiT."""

_base_ = 'mmpretrain::_base_/datasets/cifar100_bs16.py'

train_pipeline = [
    dict(type='RandomResizedCrop', scale=224, crop_ratio_range=(0.8, 1.0), backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='RandAugment',
        policies='timm_increasing',
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
        # CIFAR images are loaded in RGB, like the mean of the preprocessor.
        hparams=dict(pad_val=[129, 124, 112], interpolation='bicubic'),
    ),
    dict(type='PackInputs'),
]

test_pipeline = [
    dict(type='Resize', scale=(224, 224), backend='pillow', interpolation='bicubic'),
    dict(type='PackInputs'),
]

train_dataloader = dict(batch_size=100, num_workers=4, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=100, num_workers=4, dataset=dict(pipeline=test_pipeline))
val_evaluator = dict(topk=(1, 5))

test_dataloader = val_dataloader
test_evaluator = val_evaluator
