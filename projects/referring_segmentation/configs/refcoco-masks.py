"""RefCOCO, testA: the mask of what an expression refers to, from SPHINX' box and SAM."""

custom_imports = dict(
    imports=[
        'mergemix_mm',
        'projects.referring_segmentation.models.refcoco_masks',
        'projects.referring_segmentation.models.segmentation_iou',
        'projects.referring_segmentation.models.segmenters',
    ],
    allow_failed_imports=False,
)

test_dataloader = dict(
    batch_size=16,
    num_workers=8,
    collate_fn=dict(type='ConversationCollate', padding_side='left'),
    dataset=dict(
        type='RefCOCOMaskDataset',
        data_root='data/coco',
        data_prefix=dict(img_path='train2014'),
        ref_file='refcoco/refs(unc).p',
        ann_file='refcoco/instances.json',
        split='testA',
        pipeline=[dict(type='ReferringSegmentationTask')],
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_evaluator = [
    dict(type='ReferringBoxMetric'),
    dict(type='SegmentationIoU', segmenter=dict(type='SamSegmenter', pretrained='facebook/sam-vit-huge')),
]
test_cfg = dict()
