"""Loss on plain text, to see whether the language model stays intact; given texts are scored, nothing is generated."""

_base_ = './benchmark_bs16.py'

# Options of `encode` for tools/evaluate.py.
encode_options = dict(generate=False, chat_template='plain', max_length=2048)

test_dataloader = dict(
    collate_fn=dict(_delete_=True, type='ConversationCollate'),
    # JSON lines, {"text": "..."}: yours.
    dataset=dict(
        type='TaskRecordDataset',
        data_root='data/refinedweb',
        ann_file='val.jsonl',
        test_mode=True,
        pipeline=[dict(type='LanguageModellingTask')],
    ),
)
test_evaluator = dict(type='AnswerLoss')
