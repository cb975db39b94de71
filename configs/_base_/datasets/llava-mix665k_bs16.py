"""LLaVA-v1.5's 665,298 conversations for instruction tuning, batches of 16 of one modality and similar lengths."""

train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    collate_fn=dict(type='ConversationCollate'),
    dataset=dict(
        type='ConversationDataset',
        data_root='data/LLaVA-Tuning',
        ann_file='llava_v1_5_mix665k.json',
        on_error='skip',  # A few images of the set are gone from the web: counted, and named in the log.
    ),
    # Batches of one modality keep the steps of text short, and all GPUs take the same kind at a time. Similar lengths
    # leave little padding. LLaVA's own script groups like this as well (--group_by_modality_length).
    sampler=dict(type='ModalitySampler', batch_size=16, group_by_length=True),
)
