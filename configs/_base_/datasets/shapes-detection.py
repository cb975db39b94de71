"""All drawn things of a shape: mAP of the boxes in the answers, on new images."""

test_dataloader = dict(
    batch_size=100,
    num_workers=0,
    collate_fn=dict(type='ConversationCollate', padding_side='left'),
    dataset=dict(
        type='ShapesTaskDataset',
        task='detection',
        seed=1,
        length=500,
        pipeline=[dict(type='DetectionTask', decimals=2)],
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_evaluator = dict(type='TextDetectionMetric')
test_cfg = dict()
