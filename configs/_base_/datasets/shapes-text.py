"""Loss on the facts of the drawn world, each once, to see whether the language model stays intact."""

_base_ = './shapes-vqa.py'

# Options of `encode` for tools/evaluate.py.
encode_options = dict(generate=False)

test_dataloader = dict(
    collate_fn=dict(_delete_=True, type='ConversationCollate'),
    dataset=dict(task='text_only', length=160, pipeline=[dict(type='TextOnlyTask')]),
)
test_evaluator = dict(type='AnswerLoss')
