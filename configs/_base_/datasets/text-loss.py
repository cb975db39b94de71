"""Loss on plain text: does the language model survive? Given texts are scored, nothing is generated."""

encode_options = dict(generate=False, chat_template='plain', max_length=2048)

test_dataloader = dict(
    batch_size=16,
    num_workers=8,
    collate_fn=dict(type='ConversationCollate'),
    # JSON lines, {"text": "..."}: yours.
    dataset=dict(
        type='TaskRecordDataset',
        data_root='data/refinedweb',
        ann_file='val.jsonl',
        test_mode=True,
        pipeline=[dict(type='LanguageModellingTask')],
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_evaluator = dict(type='AnswerLoss')
test_cfg = dict()
