"""ScienceQA, the test questions with an image."""

_base_ = './benchmark_bs16.py'

test_dataloader = dict(
    dataset=dict(
        type='ScienceQADataset',
        data_root='data/scienceqa',
        data_prefix=dict(img_path='images'),
        split='test',
        image_only=True,
    ),
)
test_evaluator = dict(type='MultipleChoiceMetric')
