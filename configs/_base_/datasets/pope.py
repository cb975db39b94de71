"""POPE on COCO (adversarial, popular and random questions), read by the official rule."""

_base_ = './benchmark_bs16.py'

test_dataloader = dict(
    dataset=dict(
        type='POPEDataset',
        data_root='data/coco',
        data_prefix=dict(img_path='val2014'),
        ann_file={name: f'pope/coco_pope_{name}.json' for name in ('adversarial', 'popular', 'random')},
    ),
)
test_evaluator = dict(type='POPEMetric', rule='official')
