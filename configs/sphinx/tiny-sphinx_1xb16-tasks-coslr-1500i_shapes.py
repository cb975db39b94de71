"""Stage 2 of a tiny SPHINX on drawn shapes, behind stage 1: questions, boxes, captions and plain facts."""

_base_ = './tiny-sphinx_1xb16-align-coslr-400i_shapes.py'

# The encoders have learnt enough, and stand frozen as SPHINX' do.
model = dict(
    vlm=dict(
        pretrained='work_dirs/tiny-sphinx_1xb16-align-coslr-400i_shapes/pretrained',
        language_model=None,
        trainable=['projector', 'language_model'],
    )
)
train_dataloader = dict(dataset=dict(tasks=dict(_delete_=True, **_base_.tasks)))
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    collate_fn=dict(type='ConversationCollate', padding_side='left'),
    # Grounding alone; tools/evaluate.py tests the other tasks.
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

max_iters = 1500
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=30, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=500)
