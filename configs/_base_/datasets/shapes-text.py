"""Loss on the facts of the drawn world, each once: does the language model survive?"""

encode_options = dict(generate=False)

test_dataloader = dict(
    batch_size=100,
    num_workers=0,
    collate_fn=dict(type='ConversationCollate'),
    dataset=dict(
        type='ShapesTaskDataset',
        task='text_only',
        seed=1,
        length=160,
        pipeline=[dict(type='TextOnlyTask')],
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_evaluator = dict(type='AnswerLoss')
test_cfg = dict()
