"""POPE on COCO (adversarial, popular and random questions), read by the official rule."""

test_dataloader = dict(
    batch_size=16,
    num_workers=8,
    collate_fn=dict(type='ConversationCollate', padding_side='left'),
    dataset=dict(
        type='POPEDataset',
        data_root='data/coco',
        data_prefix=dict(img_path='val2014'),
        ann_file={name: f'pope/coco_pope_{name}.json' for name in ('adversarial', 'popular', 'random')},
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_evaluator = dict(type='POPEMetric', rule='official')
test_cfg = dict()
