"""LLaVA-v1.5's conversations and prompts with images, 1:1, batches of 16 of one task each."""

_base_ = './llava-mix665k_bs16.py'

train_dataloader = dict(
    collate_fn=dict(type='UnifiedCollate'),
    dataset=dict(
        _delete_=True,
        type='UnifiedDataset',
        ratio=dict(gen=1, und=1),
        # JSON lines, {"prompt": "a red ring", "image": "images/0001.png"}: yours.
        gen=dict(type='TextToImageDataset', data_root='data/text-to-image', ann_file='train.jsonl', on_error='skip'),
        und=_base_.train_dataloader.dataset,
    ),
)
