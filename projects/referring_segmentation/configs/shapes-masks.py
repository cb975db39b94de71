"""1,000 drawn scenes: the mask of what an expression refers to, from SPHINX' box and GrabCut, on a CPU."""

custom_imports = dict(
    imports=[
        'mergemix_mm',
        'projects.referring_segmentation.models.refcoco_masks',
        'projects.referring_segmentation.models.segmentation_iou',
        'projects.referring_segmentation.models.segmenters',
        'projects.referring_segmentation.models.shapes_masks',
    ],
    allow_failed_imports=False,
)

test_dataloader = dict(
    batch_size=100,
    num_workers=0,
    collate_fn=dict(type='ConversationCollate', padding_side='left'),
    dataset=dict(
        type='ReferringShapesDataset',
        seed=1,
        length=1000,
        pipeline=[dict(type='ReferringSegmentationTask', decimals=2)],
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_evaluator = [
    dict(type='ReferringBoxMetric'),
    dict(type='SegmentationIoU', segmenter=dict(type='GrabCutSegmenter')),
]
test_cfg = dict()
