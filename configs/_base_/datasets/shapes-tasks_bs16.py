"""Five tasks on drawn shapes, batches of 16 of one modality each: a config trains on all of them or on some."""

shapes = dict(type='ShapesTaskDataset', split='train', length=40000)

# A name of its own: a config that trains on some of the tasks inherits no others, and the next stage needs all again.
tasks = dict(
    vqa=dict(weight=2, dataset=dict(shapes, task='vqa', pipeline=[dict(type='ShortAnswerTask')])),
    grounding=dict(weight=3, dataset=dict(shapes, task='grounding', pipeline=[dict(type='GroundingTask', decimals=2)])),
    detection=dict(weight=2, dataset=dict(shapes, task='detection', pipeline=[dict(type='DetectionTask', decimals=2)])),
    caption=dict(weight=1, dataset=dict(shapes, task='caption', pipeline=[dict(type='CaptionTask')])),
    text_only=dict(weight=1, dataset=dict(shapes, task='text_only', length=160, pipeline=[dict(type='TextOnlyTask')])),
)
train_dataloader = dict(
    batch_size=16,
    num_workers=1,  # It draws while the model trains.
    persistent_workers=True,
    collate_fn=dict(type='ConversationCollate'),
    dataset=dict(type='TaskMixDataset', tasks=tasks),
    sampler=dict(type='TaskMixSampler', batch_size=16),
)
