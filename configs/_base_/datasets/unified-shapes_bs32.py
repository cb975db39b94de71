"""Shape to text and text to shape, 1:1, batches of 32 of one task each; questions are validated, drawings tested."""

train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    collate_fn=dict(type='UnifiedCollate'),
    dataset=dict(
        type='UnifiedDataset',
        ratio=dict(gen=1, und=1),
        gen=dict(type='ShapesGenerationDataset', split='train', length=20000, image_size=64),
        und=dict(type='ShapesConversationDataset', split='train', length=20000, image_size=64),
    ),
    sampler=dict(type='ModalitySampler', batch_size=32),
)
val_dataloader = dict(
    batch_size=125,
    num_workers=0,
    collate_fn=dict(type='UnifiedCollate', padding_side='left'),
    dataset=dict(type='ShapesConversationDataset', split='train', seed=1, length=500, image_size=64),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = [dict(type='AnswerAccuracy')]
val_cfg = dict()

test_dataloader = dict(
    batch_size=100,
    num_workers=0,
    collate_fn=dict(type='UnifiedCollate', padding_side='left'),
    dataset=dict(type='ShapesGenerationDataset', split='train', seed=1, length=200, image_size=64),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_evaluator = [dict(type='ShapesGenerationMetric')]
test_cfg = dict()
