"""Tests of POPEDataset."""

import json

import pytest
from mmengine.registry import DATASETS
from PIL import Image

from mergemix_mm.datasets import RecordError
from mergemix_mm.datasets.conversations.prompts import SHORT_ANSWER, question_messages


def dataset(tmp_path, records, **kwargs):
    (tmp_path / 'val2014').mkdir(exist_ok=True)
    Image.new('RGB', (5, 4)).save(tmp_path / 'val2014' / 'COCO_val2014_1.jpg')
    (tmp_path / 'coco_pope_random.json').write_text('\n'.join(json.dumps(record) for record in records))
    return DATASETS.build(
        dict(
            type='POPEDataset',
            data_root=str(tmp_path),
            data_prefix=dict(img_path='val2014'),
            **dict(ann_file='coco_pope_random.json') | kwargs,
        )
    )


def line(**kwargs):
    return dict(question_id=1, image='COCO_val2014_1.jpg', text='Is there a dog in the image?', label='yes') | kwargs


def test_official_lines_become_questions_with_answers(tmp_path):
    data = dataset(tmp_path, [line(), line(question_id=2, label='No')])
    assert len(data) == 2 and data.test_mode and data.modalities.all()
    record = data[1]
    question = f'Is there a dog in the image?{SHORT_ANSWER}'
    assert record['messages'] == question_messages(question, num_images=1, answer='no')
    assert record['images'][0].size == (5, 4)
    assert (record['gt_answer'], record['question_id']) == ('no', 2)
    assert record['source'].endswith('coco_pope_random.json:2')


def test_files_by_category_are_read_one_after_the_other(tmp_path):
    dataset(tmp_path, [line(), line(question_id=2)])
    (tmp_path / 'popular.json').write_text(json.dumps(line(question_id=7, label='no')))
    data = dataset(
        tmp_path, [line(), line(question_id=2)], ann_file=dict(random='coco_pope_random.json', popular='popular.json')
    )
    assert [(record['category'], record['question_id']) for record in (data[i] for i in range(3))] == [
        ('random', 1),
        ('random', 2),
        ('popular', 7),
    ]
    assert data.lengths.tolist() == [len(json.dumps(line()))] * 2 + [len(json.dumps(line(label='no')))]
    assert data[1]['source'].endswith('coco_pope_random.json:2') and data[2]['source'].endswith('popular.json:1')


def test_suffix_is_an_argument(tmp_path):
    record = dataset(tmp_path, [line()], suffix='')[0]
    assert record['messages'][0]['content'][1]['text'] == 'Is there a dog in the image?'


@pytest.mark.parametrize(
    'record, message',
    [
        (line(label='maybe'), r"json:1: label 'maybe'"),
        (dict(text='x', image='y'), r"json:1: lacks \['label'\]"),
        (line(image='none.jpg'), r'json:1: image .*val2014/none\.jpg'),
    ],
)
def test_unusable_lines_are_named(tmp_path, record, message):
    with pytest.raises(RecordError, match=message):
        dataset(tmp_path, [record])[0]
