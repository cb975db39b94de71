"""Alignment of SPHINX: captions of images and plain text, batches of 8 of one modality each."""

# JSON lines, {"image": "00000/000000001.jpg", "caption": "a red ring"} and {"text": "..."}: yours.
captions = dict(
    type='TaskRecordDataset',
    data_root='data/laion400m',
    ann_file='train.jsonl',
    on_error='skip',
    pipeline=[dict(type='CaptionTask', instruction=None)],
)
texts = dict(
    type='TaskRecordDataset',
    data_root='data/refinedweb',
    ann_file='train.jsonl',
    on_error='skip',
    pipeline=[dict(type='LanguageModellingTask')],
)

train_dataloader = dict(
    batch_size=8,
    num_workers=8,
    collate_fn=dict(type='ConversationCollate'),
    dataset=dict(
        type='TaskMixDataset',
        tasks=dict(caption=dict(weight=3, dataset=captions), text=dict(weight=1, dataset=texts)),
    ),
    sampler=dict(type='TaskMixSampler', batch_size=8),
)
