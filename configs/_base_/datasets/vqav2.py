"""VQAv2, the validation questions."""

_base_ = './benchmark_bs16.py'

test_dataloader = dict(
    dataset=dict(
        type='VQAv2Dataset',
        data_root='data/coco',
        data_prefix=dict(img_path='val2014'),
        question_file='v2_OpenEnded_mscoco_val2014_questions.json',
        ann_file='v2_mscoco_val2014_annotations.json',
        test_mode=True,
    ),
)
test_evaluator = dict(type='VQAv2Accuracy')
