"""A trained SPHINX learns to answer `Classify the image.` on ImageNet-1k: two epochs, which is our choice."""

_base_ = '../../../configs/sphinx/sphinx-7b_16xb8-tasks-coslr-20000i-fsdp_mix.py'

custom_imports = dict(
    imports=['mergemix_mm', 'projects.visual_recognition.models.class_record_dataset'], allow_failed_imports=False
)

# tools/model_converters/save_pretrained.py writes it from a checkpoint.
model = dict(
    vlm=dict(pretrained='work_dirs/sphinx-7b_16xb8-tasks-coslr-20000i-fsdp_mix/pretrained'),
    generation=dict(max_new_tokens=24),
)

imagenet = dict(
    type='ClassRecordDataset',
    dataset=dict(type='mmpretrain.ImageNet', data_root='data/imagenet', split='train'),
    class_names='IMAGENET_SIMPLE_CATEGORIES',
)
train_dataloader = dict(
    dataset=dict(_delete_=True, **imagenet, pipeline=[dict(type='ClassificationTask'), _base_.encode]),
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=8,
    collate_fn=dict(type='ConversationCollate', padding_side='left'),
    dataset=dict(
        imagenet,
        dataset=dict(imagenet['dataset'], split='val'),
        test_mode=True,
        pipeline=[dict(type='ClassificationTask'), dict(_base_.encode, max_length=None, generate=True)],
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='AnswerAccuracy')
val_cfg = dict()
test_dataloader, test_evaluator, test_cfg = val_dataloader, val_evaluator, val_cfg
train_cfg = dict(val_interval=_base_.train_cfg.max_iters)
