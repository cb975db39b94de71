"""RefCOCO, testA: the box of what an expression refers to, IoU >= 0.5."""

test_dataloader = dict(
    batch_size=16,
    num_workers=8,
    collate_fn=dict(type='ConversationCollate', padding_side='left'),
    dataset=dict(
        type='RefCOCODataset',
        data_root='data/coco',
        data_prefix=dict(img_path='train2014'),
        ref_file='refcoco/refs(unc).p',
        ann_file='refcoco/instances.json',
        split='testA',
        pipeline=[dict(type='GroundingTask')],
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_evaluator = dict(type='ReferringBoxMetric')
test_cfg = dict()
