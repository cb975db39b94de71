"""VQAv2, the validation questions."""

test_dataloader = dict(
    batch_size=16,
    num_workers=8,
    collate_fn=dict(type='ConversationCollate', padding_side='left'),
    dataset=dict(
        type='VQAv2Dataset',
        data_root='data/coco',
        data_prefix=dict(img_path='val2014'),
        question_file='v2_OpenEnded_mscoco_val2014_questions.json',
        ann_file='v2_mscoco_val2014_annotations.json',
        test_mode=True,
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_evaluator = dict(type='VQAv2Accuracy')
test_cfg = dict()
