"""Which of the drawn things is meant? IoU >= 0.5, on new images."""

test_dataloader = dict(
    batch_size=100,
    num_workers=0,
    collate_fn=dict(type='ConversationCollate', padding_side='left'),
    dataset=dict(
        type='ShapesTaskDataset',
        task='grounding',
        seed=1,
        length=500,
        pipeline=[dict(type='GroundingTask', decimals=2)],
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_evaluator = dict(type='ReferringBoxMetric')
test_cfg = dict()
