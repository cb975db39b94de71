"""Images with captions, batches of 8: what a projection learns from when the language model is frozen."""

train_dataloader = dict(
    batch_size=8,
    num_workers=8,
    collate_fn=dict(type='ConversationCollate'),
    dataset=dict(
        type='TaskMixDataset',
        tasks=dict(
            caption=dict(
                weight=3,
                # JSON lines, {"image": "00000/000000001.jpg", "caption": "a red ring"}: yours.
                dataset=dict(
                    type='TaskRecordDataset',
                    data_root='data/laion400m',
                    ann_file='train.jsonl',
                    on_error='skip',
                    pipeline=[dict(type='CaptionTask', instruction=None)],
                ),
            ),
        ),
    ),
    sampler=dict(type='TaskMixSampler', batch_size=8),
)
