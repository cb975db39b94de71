"""RefCOCO, testA: the box of what an expression refers to, IoU >= 0.5."""

_base_ = './benchmark_bs16.py'

test_dataloader = dict(
    dataset=dict(
        type='RefCOCODataset',
        data_root='data/coco',
        data_prefix=dict(img_path='train2014'),
        ref_file='refcoco/refs(unc).p',
        ann_file='refcoco/instances.json',
        split='testA',
        pipeline=[dict(type='GroundingTask')],
    ),
)
test_evaluator = dict(type='ReferringBoxMetric')
