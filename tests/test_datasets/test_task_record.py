"""Tests of TaskRecordDataset."""

import json

import pytest
from mmengine.registry import DATASETS
from PIL import Image

from mergemix_mm.datasets import RecordError

RECORDS = [
    dict(image='1.png', expression='the ring', box=[2, 0, 10, 5], size=[10, 20]),
    dict(images=['1.png', '1.png'], question='The same?', choices=['yes', 'no'], answer=0),
    dict(question='Why?', answer='So.'),
    dict(image='2.png', caption='A ring.'),
]


def dataset(folder, **kwargs):
    Image.new('RGB', (20, 10)).save(folder / '1.png')
    (folder / 'records.jsonl').write_text('\n'.join(map(json.dumps, RECORDS)))
    return DATASETS.build(dict(type='TaskRecordDataset', ann_file='records.jsonl', data_root=str(folder), **kwargs))


def test_keys_are_the_fields_and_images_are_loaded(tmp_path):
    data = dataset(tmp_path)
    assert data.modalities.tolist() == [True, True, False, True]
    assert [len(data[i]['images']) for i in range(3)] == [1, 2, 0]
    assert (data[0]['box'], data[0]['images'][0].size) == ([2, 0, 10, 5], (20, 10))
    with pytest.raises(RecordError, match=r'records\.jsonl:4: image .*2\.png'):
        data[3]


@pytest.mark.parametrize(
    ('task', 'index', 'answer'),
    [('GroundingTask', 0, '[0.100,0.250,0.500,0.500]'), ('MultipleChoiceTask', 1, 'A'), ('TextOnlyTask', 2, 'So.')],
)
def test_tasks_follow_it(tmp_path, task, index, answer):
    data = dataset(tmp_path, pipeline=[dict(type=task)])
    assert data[index]['gt_answer'] == answer
    with pytest.raises(RecordError, match=r'records\.jsonl:\d: \w+: lacks'):
        data[0 if index else 1]
