"""LLaVA's 558,128 image-caption pairs for the projector (LLaVA-Pretrain), batches of 32."""

train_dataloader = dict(
    batch_size=32,
    num_workers=8,
    collate_fn=dict(type='ConversationCollate'),
    dataset=dict(
        type='ConversationDataset',
        data_root='data/LLaVA-Pretrain',
        ann_file='blip_laion_cc_sbu_558k.json',
        on_error='skip',
    ),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
