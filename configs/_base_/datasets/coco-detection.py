"""Detection on COCO from text: all objects of a class that is there, mAP of the boxes in the answers."""

test_dataloader = dict(
    batch_size=16,
    num_workers=8,
    collate_fn=dict(type='ConversationCollate', padding_side='left'),
    dataset=dict(
        type='COCOTaskDataset',
        kind='detection',
        data_root='data/coco',
        data_prefix=dict(img_path='val2017'),
        ann_file='annotations/instances_val2017.json',
        test_mode=True,
        pipeline=[dict(type='DetectionTask')],
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_evaluator = dict(type='TextDetectionMetric')
test_cfg = dict()
