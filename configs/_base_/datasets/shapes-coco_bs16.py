"""1,000 drawn images of shapes with boxes and masks, of different sizes as in COCO, drawn on first use: no download."""

folder = 'data/shapes_coco'
shapes = dict(type='ShapesCocoDataset', folder=folder, num_train=1000, num_val=200, image_size=96)

# In everything but the numbers those of MMDetection for COCO, whose images are resized to 1333 x 800.
resize = dict(type='Resize', scale=(128, 96), keep_ratio=True)
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        **shapes,
        split='train',
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            resize,
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackDetInputs'),
        ],
    ),
)

val_dataloader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **shapes,
        split='val',
        pipeline=[
            dict(type='LoadImageFromFile'),
            resize,
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
        ],
    ),
)
val_evaluator = dict(type='CocoMetric', ann_file=f'{folder}/annotations/val.json', metric=['bbox', 'segm'])

test_dataloader = val_dataloader
test_evaluator = val_evaluator
