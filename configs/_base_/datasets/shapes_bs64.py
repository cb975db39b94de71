"""Questions on drawn shapes, batches of 64: trained with 80% of the most frequent answers, tested with 20%."""

train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    collate_fn=dict(type='ConversationCollate'),
    dataset=dict(type='ShapesConversationDataset', split='train', length=20000, answer_prior=0.8),
    sampler=dict(type='ModalitySampler', batch_size=64),
)
val_dataloader = dict(
    batch_size=125,
    num_workers=0,
    collate_fn=dict(type='ConversationCollate', padding_side='left'),
    dataset=dict(type='ShapesConversationDataset', split='train', seed=1, length=1000, answer_prior=0.2),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = [dict(type='AnswerAccuracy'), dict(type='AnswerCalibrationError')]
val_cfg = dict()

test_dataloader = val_dataloader
test_evaluator = val_evaluator
test_cfg = val_cfg
