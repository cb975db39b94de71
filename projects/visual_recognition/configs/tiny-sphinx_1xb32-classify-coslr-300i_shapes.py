"""A tiny SPHINX, trained to point, learns to answer `Classify the image.` on drawn shapes: minutes on a CPU."""

_base_ = ['../../../configs/_base_/models/tiny-sphinx_shapes.py', '../../../configs/_base_/runtimes/vlm_runtime.py']

model = dict(
    vlm=dict(pretrained='work_dirs/tiny-sphinx_1xb16-tasks-coslr-600i_shapes/pretrained', language_model=None),
    generation=dict(max_new_tokens=8),
)

shapes = dict(type='ShapesTaskDataset', task='classification')
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    collate_fn=dict(type='ConversationCollate'),
    dataset=dict(shapes, length=2000, pipeline=[dict(type='ClassificationTask'), _base_.encode]),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    collate_fn=dict(type='ConversationCollate', padding_side='left'),
    dataset=dict(
        shapes, seed=1, length=1000, pipeline=[dict(type='ClassificationTask'), dict(_base_.encode, generate=True)]
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='AnswerAccuracy')
val_cfg = dict()
test_dataloader, test_evaluator, test_cfg = val_dataloader, val_evaluator, val_cfg

max_iters = 300
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, betas=(0.9, 0.95), weight_decay=0.01),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=30, end=max_iters),
]
train_cfg = dict(by_epoch=False, max_iters=max_iters, val_interval=max_iters)
