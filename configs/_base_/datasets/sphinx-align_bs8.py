"""Alignment of SPHINX: captions of images and plain text at 3:1, batches of 8 of one modality each."""

_base_ = './laion400m-captions_bs8.py'

# Plain text keeps the language model from forgetting, since it trains too. JSON lines, {"text": "..."}: yours.
texts = dict(
    type='TaskRecordDataset',
    data_root='data/refinedweb',
    ann_file='train.jsonl',
    on_error='skip',
    pipeline=[dict(type='LanguageModellingTask')],
)
train_dataloader = dict(dataset=dict(tasks=dict(text=dict(weight=1, dataset=texts))))
