"""CIFAR-100-C at 224 px, to test what was trained on CIFAR-100: `tools/evaluate.py CONFIG CHECKPOINT cifar100-c`.

data/CIFAR-100-C holds what CIFAR-100-C.tar of https://zenodo.org/record/3555552 holds: 15 corruptions with 10,000
images at each of five severities, and four more corruptions that are not part of the test.
"""

test_dataloader = dict(
    batch_size=100,
    num_workers=4,
    dataset=dict(
        type='CIFAR100C',
        data_root='data/CIFAR-100-C',
        pipeline=[
            dict(type='Resize', scale=(224, 224), backend='pillow', interpolation='bicubic'),
            dict(type='PackInputs', meta_keys=('corruption', 'severity')),
        ],
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_evaluator = dict(type='CorruptionError')
