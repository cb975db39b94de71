"""CIFAR-100 enlarged to 224 px, in batches of 100, augmented as in the MergeMix release."""

_base_ = 'mmpretrain::_base_/datasets/cifar100_bs16.py'

# The operations of FixMatch (https://arxiv.org/abs/2001.07685) without its identity, which MMPretrain does not have.
# MMPretrain measures an enhancement from the unchanged image, where FixMatch's factor is 1.
policies = [
    dict(type='AutoContrast'),
    dict(type='Equalize'),
    dict(type='Brightness', magnitude_range=(0.05, 0.95)),
    dict(type='ColorTransform', magnitude_range=(0.05, 0.95)),
    dict(type='Contrast', magnitude_range=(0.05, 0.95)),
    dict(type='Sharpness', magnitude_range=(0.05, 0.95)),
    dict(type='Posterize', magnitude_range=(8, 4)),
    dict(type='Solarize', magnitude_range=(256, 0)),
    dict(type='Rotate', magnitude_range=(0, 30)),
    dict(type='Shear', magnitude_range=(0, 0.3), direction='horizontal'),
    dict(type='Shear', magnitude_range=(0, 0.3), direction='vertical'),
    dict(type='Translate', magnitude_range=(0, 0.3), direction='horizontal'),
    dict(type='Translate', magnitude_range=(0, 0.3), direction='vertical'),
]

train_pipeline = [
    dict(type='RandomResizedCrop', scale=224, crop_ratio_range=(0.8, 1.0), backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='RandAugment',
        policies=policies,
        num_policies=2,
        total_level=10,
        magnitude_level=7,
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
