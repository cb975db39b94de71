"""A tiny SPHINX that learns to count, beside two tasks of the package, on drawn shapes: minutes on a CPU."""

_base_ = ['../../../configs/_base_/models/tiny-sphinx_shapes.py', '../../../configs/_base_/runtimes/vlm_runtime.py']

# The file of the task, from the root of the repository.
custom_imports = dict(imports=['mergemix_mm', 'projects.new_task.models.counting'], allow_failed_imports=False)

encode = _base_.encode
shapes = dict(type='ShapesTaskDataset', length=20000)
tasks = dict(
    counting=dict(weight=2, dataset=dict(shapes, task='detection', pipeline=[dict(type='CountingTask'), encode])),
    vqa=dict(weight=1, dataset=dict(shapes, task='vqa', pipeline=[dict(type='ShortAnswerTask'), encode])),
    text_only=dict(
        weight=1, dataset=dict(shapes, task='text_only', length=160, pipeline=[dict(type='TextOnlyTask'), encode])
    ),
)
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    collate_fn=dict(type='ConversationCollate'),
    dataset=dict(type='TaskMixDataset', tasks=tasks),
    sampler=dict(type='TaskMixSampler', batch_size=32),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    collate_fn=dict(type='ConversationCollate', padding_side='left'),
    dataset=dict(
        shapes,
        task='detection',
        seed=1,
        length=500,
        pipeline=[dict(type='CountingTask'), dict(encode, generate=True)],
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = [dict(type='AnswerAccuracy')]
val_cfg = dict()
test_dataloader, test_evaluator, test_cfg = val_dataloader, val_evaluator, val_cfg

# One encoder of the model is enough to count.
model = dict(
    vlm=dict(backbone=dict(encoders=[_base_.model.vlm.backbone.encoders[0]]), neck=dict(in_channels=[96])),
    generation=dict(max_new_tokens=2),
)

max_iters = 1000
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=30, end=max_iters),
]
train_cfg = dict(by_epoch=False, max_iters=max_iters, val_interval=max_iters)
