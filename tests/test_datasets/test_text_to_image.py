"""Tests of TextToImageDataset."""

import json

import numpy as np
import pytest
from PIL import Image

from mergemix_mm.datasets import RecordError, TextToImageDataset

RECORDS = [
    dict(prompt=' a red ring ', image='a.png', category='ring'),
    dict(caption='a blue cross', image='a.png'),
    dict(text='a dog', image='a.png'),
]


@pytest.fixture
def root(tmp_path):
    Image.fromarray(np.full((6, 4, 3), 200, np.uint8)).convert('L').save(tmp_path / 'a.png')

    def write(records, name='data.jsonl'):
        lines = [json.dumps(record) for record in records]
        text = '\n'.join(lines) if name.endswith('l') else json.dumps(records, indent=1)
        (tmp_path / name).write_text(text)
        return str(tmp_path)

    return write


@pytest.mark.parametrize('name', ['data.json', 'data.jsonl'])
def test_prompts_of_all_names_come_with_their_images(root, name):
    data = TextToImageDataset(name, data_root=root(RECORDS, name))
    infos = [data.get_data_info(index) for index in range(3)]
    assert [info['prompt'] for info in infos] == ['a red ring', 'a blue cross', 'a dog']
    assert all(info['images'][0].size == (4, 6) and info['images'][0].mode == 'RGB' for info in infos)
    assert infos[0]['category'] == 'ring' and 'category' not in infos[1]
    assert data.modalities.tolist() == [True] * 3
    if name == 'data.jsonl':
        assert infos[1]['source'].endswith('data.jsonl:2')


@pytest.mark.parametrize(
    ('record', 'message'),
    [
        (dict(image='a.png'), r'data.jsonl:2: .*found \[\]'),
        (dict(prompt='a', text='b', image='a.png'), r"found \['prompt', 'text'\]"),
        (dict(prompt='  ', image='a.png'), r"prompt='  '"),
        (dict(prompt=['a'], image='a.png'), r"prompt=\['a'\]"),
        (dict(prompt='a'), 'image=None'),
        (dict(prompt='a', image='b.png'), r'data.jsonl:2: image .*b.png'),
    ],
)
def test_unusable_records_are_named_or_skipped(root, record, message):
    folder = root([RECORDS[0], record])
    with pytest.raises(RecordError, match=message):
        TextToImageDataset('data.jsonl', data_root=folder)[1]
    data = TextToImageDataset('data.jsonl', data_root=folder, on_error='skip')
    assert data[1]['prompt'] == 'a red ring' and data.num_skipped == 1


def test_prompts_alone_do_for_evaluation(root):
    data = TextToImageDataset('data.jsonl', data_root=root([dict(prompt='a')]), test_mode=True)
    assert data[0]['images'] == []
