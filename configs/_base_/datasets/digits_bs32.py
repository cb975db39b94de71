"""Scikit-learn's 1,797 handwritten digits at 32 px, in batches of 32: no download."""

# Mean and spread of the grey levels of these images.
data_preprocessor = dict(num_classes=10, mean=[79.7] * 3, std=[90.9] * 3, to_rgb=False)

train_dataloader = dict(
    batch_size=32,
    num_workers=0,  # An image is made faster than it is sent from a worker process.
    dataset=dict(
        type='DigitsDataset',
        split='train',
        pipeline=[dict(type='RandomCrop', crop_size=32, padding=2), dict(type='PackInputs')],
    ),
    sampler=dict(type='DefaultSampler', shuffle=True),
)

val_dataloader = dict(
    batch_size=128,
    num_workers=0,
    dataset=dict(type='DigitsDataset', split='test', pipeline=[dict(type='PackInputs')]),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = [dict(type='Accuracy', topk=(1,)), dict(type='CalibrationError', figure='reliability')]

test_dataloader = val_dataloader
test_evaluator = val_evaluator
