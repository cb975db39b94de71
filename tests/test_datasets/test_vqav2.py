"""Tests of VQAv2Dataset."""

import json

import pytest
from mmengine.registry import DATASETS
from PIL import Image

from mergemix_mm.datasets import RecordError
from mergemix_mm.evaluation import VQAv2Accuracy

QUESTIONS = [
    dict(image_id=9, question='What colour?', question_id=9001),
    dict(image_id=9, question='How many?', question_id=9002),
]


def annotation(question_id, answers, **kwargs):
    answers = [dict(answer=answer, answer_confidence='yes', answer_id=i + 1) for i, answer in enumerate(answers)]
    return dict(question_id=question_id, image_id=9, answers=answers, answer_type='other', **kwargs)


ANNOTATIONS = [
    annotation(9001, ['red'] * 2 + ['blue'] * 8, multiple_choice_answer='blue'),
    annotation(9002, ['3'] * 6 + ['4'] * 4),
]


def dataset(tmp_path, annotations=ANNOTATIONS, **kwargs):
    (tmp_path / 'val2014').mkdir(exist_ok=True)
    Image.new('RGB', (5, 4)).save(tmp_path / 'val2014' / 'COCO_val2014_000000000009.jpg')
    info = dict(info=dict(version='2.0'), data_type='mscoco', data_subtype='val2014')
    (tmp_path / 'questions.json').write_text(json.dumps(dict(info, questions=QUESTIONS)))
    (tmp_path / 'annotations.json').write_text(json.dumps(dict(info, annotations=annotations)))
    kwargs = dict(ann_file='annotations.json', data_prefix=dict(img_path='val2014')) | kwargs
    return DATASETS.build(dict(type='VQAv2Dataset', question_file='questions.json', data_root=str(tmp_path), **kwargs))


def test_question_comes_with_its_ten_answers(tmp_path):
    data = dataset(tmp_path)
    assert len(data) == 2 and data.modalities.tolist() == [True, True]
    record = data[0]
    assert record['messages'][0]['content'] == [
        dict(type='image'),
        dict(type='text', text='What colour?\nAnswer the question using a single word or phrase.'),
    ]
    assert record['messages'][1]['content'][0]['text'] == 'blue'
    assert record['gt_answer'] == ['red'] * 2 + ['blue'] * 8
    assert (record['question_id'], record['answer_type'], record['images'][0].size) == (9001, 'other', (5, 4))
    assert data[1]['messages'][1]['content'][0]['text'] == '3'


def test_the_answers_are_what_the_official_accuracy_takes(tmp_path):
    record = dataset(tmp_path)[0]
    for answer, expected in (('Blue.', 100), ('red', 60), ('green', 0)):
        metric = VQAv2Accuracy()
        metric.process(None, [{**record, 'pred_answer': answer}])
        found = metric.evaluate(1)
        assert found['vqa/official_accuracy'] == found['vqa/other/official_accuracy'] == pytest.approx(expected)


def test_test_sets_have_questions_only(tmp_path):
    data = dataset(tmp_path, ann_file='', test_mode=True)
    assert len(data[0]['messages']) == 1 and 'gt_answer' not in data[0]
    with pytest.raises(ValueError, match='ann_file.*test_mode=True'):
        dataset(tmp_path, ann_file='')


def test_an_annotation_without_answers_is_named(tmp_path):
    annotations = [dict(ANNOTATIONS[0], answers=[]), ANNOTATIONS[1]]
    with pytest.raises(RecordError, match=r'questions\.json:1 .*annotations\.json:1 .*answers'):
        dataset(tmp_path, annotations)[0]


def test_file_name_of_an_image_is_an_argument(tmp_path):
    with pytest.raises(RecordError, match=r'val2014/9\.jpg'):
        dataset(tmp_path, image_name='{image_id}.jpg')[0]


def test_files_of_different_splits_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r'annotations\.json .* 1 annotations .* 2 questions'):
        dataset(tmp_path, ANNOTATIONS[:1])
    with pytest.raises(RecordError, match=r'questions\.json:1 \(record 0\): .*9001 .*9002'):
        dataset(tmp_path, ANNOTATIONS[::-1])[0]
