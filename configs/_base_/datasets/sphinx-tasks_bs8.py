"""The task mix of SPHINX, batches of 8 of one modality each. The weights are choices made here; the paper has none."""

_base_ = './llava-mix665k_bs16.py'

coco = dict(data_root='data/coco', on_error='skip')
train2017 = dict(coco, data_prefix=dict(img_path='train2017'))
train2014 = dict(coco, data_prefix=dict(img_path='train2014'))
refcoco = dict(type='RefCOCODataset', split='train', **train2014)
files = dict(
    refcoco=dict(ref_file='refcoco/refs(unc).p', ann_file='refcoco/instances.json'),
    refcoco_plus=dict(ref_file='refcoco+/refs(unc).p', ann_file='refcoco+/instances.json'),
    refcocog=dict(ref_file='refcocog/refs(umd).p', ann_file='refcocog/instances.json'),
)

tasks = dict(
    conversation=dict(weight=6, dataset=_base_.train_dataloader.dataset),
    vqa=dict(
        weight=4,
        dataset=dict(
            type='VQAv2Dataset',
            question_file='v2_OpenEnded_mscoco_train2014_questions.json',
            ann_file='v2_mscoco_train2014_annotations.json',
            image_name='COCO_train2014_{image_id:012d}.jpg',
            **train2014,
        ),
    ),
    multiple_choice=dict(
        weight=0.5,
        dataset=dict(
            type='ScienceQADataset',
            data_root='data/scienceqa',
            data_prefix=dict(img_path='images'),
            split='train',
            on_error='skip',
        ),
    ),
    grounding=dict(weight=1, dataset=dict(refcoco, pipeline=[dict(type='GroundingTask')], **files['refcoco'])),
    grounding_plus=dict(
        weight=1, dataset=dict(refcoco, pipeline=[dict(type='GroundingTask')], **files['refcoco_plus'])
    ),
    grounding_g=dict(weight=1, dataset=dict(refcoco, pipeline=[dict(type='GroundingTask')], **files['refcocog'])),
    region_caption=dict(
        weight=0.5, dataset=dict(refcoco, pipeline=[dict(type='RegionCaptionTask')], **files['refcocog'])
    ),
    caption=dict(
        weight=1,
        dataset=dict(
            type='COCOTaskDataset',
            kind='captions',
            ann_file='annotations/captions_train2017.json',
            pipeline=[dict(type='CaptionTask')],
            **train2017,
        ),
    ),
    detection=dict(
        weight=1,
        dataset=dict(
            type='COCOTaskDataset',
            kind='detection',
            ann_file='annotations/instances_train2017.json',
            pipeline=[dict(type='DetectionTask')],
            **train2017,
        ),
    ),
    pose=dict(
        weight=0.5,
        dataset=dict(
            type='COCOTaskDataset',
            kind='keypoints',
            ann_file='annotations/person_keypoints_train2017.json',
            pipeline=[dict(type='PoseTask')],
            **train2017,
        ),
    ),
    layout=dict(
        weight=0.5,
        dataset=dict(
            type='COCOTaskDataset',
            kind='layout',
            data_root='data/publaynet',
            data_prefix=dict(img_path='train'),
            ann_file='train.json',
            on_error='skip',
            pipeline=[dict(type='LayoutTask')],
        ),
    ),
)

train_dataloader = dict(
    batch_size=8,
    dataset=dict(_delete_=True, type='TaskMixDataset', tasks=tasks),
    # Not grouped by length: the 289 to 2,910 tokens of an image leave little to gain, and tasks are mixed in a batch.
    sampler=dict(type='TaskMixSampler', batch_size=8, group_by_length=False),
)
