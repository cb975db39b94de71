"""ScienceQA, the test questions with an image."""

test_dataloader = dict(
    batch_size=16,
    num_workers=8,
    collate_fn=dict(type='ConversationCollate', padding_side='left'),
    dataset=dict(
        type='ScienceQADataset',
        data_root='data/scienceqa',
        data_prefix=dict(img_path='images'),
        split='test',
        image_only=True,
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_evaluator = dict(type='MultipleChoiceMetric')
test_cfg = dict()
