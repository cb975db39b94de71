"""LLaVA-v1.5's conversations and prompts with images, 1:1, batches of 16 of one task each."""

train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    collate_fn=dict(type='UnifiedCollate'),
    dataset=dict(
        type='UnifiedDataset',
        ratio=dict(gen=1, und=1),
        # JSON lines, {"prompt": "a red ring", "image": "images/0001.png"}: yours.
        gen=dict(type='TextToImageDataset', data_root='data/text-to-image', ann_file='train.jsonl', on_error='skip'),
        und=dict(
            type='ConversationDataset',
            data_root='data/LLaVA-Tuning',
            ann_file='llava_v1_5_mix665k.json',
            on_error='skip',
        ),
    ),
    sampler=dict(type='ModalitySampler', batch_size=16),
)
