"""Detection on COCO from text: all objects of a class that is in the image, mAP of the boxes in the answers."""

_base_ = './benchmark_bs16.py'

test_dataloader = dict(
    dataset=dict(
        type='COCOTaskDataset',
        kind='detection',
        data_root='data/coco',
        data_prefix=dict(img_path='val2017'),
        ann_file='annotations/instances_val2017.json',
        test_mode=True,
        pipeline=[dict(type='DetectionTask')],
    ),
)
test_evaluator = dict(type='TextDetectionMetric')
