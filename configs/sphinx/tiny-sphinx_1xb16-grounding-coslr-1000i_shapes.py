"""A tiny SPHINX between its stages: boxes alone, until it finds things; beside other tasks that takes far longer."""

_base_ = './tiny-sphinx_1xb16-align-coslr-400i_shapes.py'

# The encoders have learnt enough, and stand frozen from here on, as SPHINX' do.
model = dict(
    vlm=dict(
        pretrained='work_dirs/tiny-sphinx_1xb16-align-coslr-400i_shapes/pretrained',
        language_model=None,
        trainable=['projector', 'language_model'],
    )
)
train_dataloader = dict(dataset=dict(tasks=dict(_delete_=True, grounding=_base_.tasks.grounding)))
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    collate_fn=dict(type='ConversationCollate', padding_side='left'),
    dataset=dict(
        type='ShapesTaskDataset',
        task='grounding',
        seed=1,
        length=400,
        pipeline=[*_base_.tasks.grounding.dataset.pipeline, dict(_base_.encode, generate=True)],
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = [dict(type='ReferringBoxMetric')]
val_cfg = dict()
test_dataloader, test_evaluator, test_cfg = val_dataloader, val_evaluator, val_cfg

max_iters = 1000
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', eta_min=1e-4, by_epoch=False, begin=30, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=250)
