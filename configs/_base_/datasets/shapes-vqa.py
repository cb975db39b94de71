"""Questions on drawn things: exact match, on new images."""

test_dataloader = dict(
    batch_size=100,
    num_workers=0,
    collate_fn=dict(type='ConversationCollate', padding_side='left'),
    dataset=dict(
        type='ShapesTaskDataset',
        task='vqa',
        seed=1,
        length=500,
        pipeline=[dict(type='ShortAnswerTask')],
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_evaluator = dict(type='AnswerAccuracy')
test_cfg = dict()
