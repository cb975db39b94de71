"""Tests of RefCOCODataset."""

import json
import os
import pickle

import numpy as np
import pytest
from mmengine.registry import DATASETS
from PIL import Image

from mergemix_mm.datasets import RecordError

INSTANCES = dict(
    images=[dict(id=581857, file_name='COCO_train2014_000000581857.jpg', height=10, width=20)],
    annotations=[
        dict(id=1719310, image_id=581857, category_id=1, bbox=[2.0, 0.0, 8.0, 5.0], iscrowd=0),
        dict(id=5, image_id=581857, category_id=2, bbox=[0.0, 0.0, 20.5, 10.0], iscrowd=0),
        dict(id=6, image_id=581857, category_id=2, bbox=[0.0, 0.0, 25.0, 10.0], iscrowd=0),
    ],
    categories=[dict(id=1, name='person'), dict(id=2, name='dog')],
)


def ref(ref_id, ann_id, split, *sentences):
    sentences = [
        dict(tokens=text.split(), raw=text.upper(), sent_id=10 * ref_id + number, sent=text)
        for number, text in enumerate(sentences)
    ]
    return dict(
        sent_ids=[sentence['sent_id'] for sentence in sentences],
        file_name='COCO_train2014_000000581857_16.jpg',
        ann_id=ann_id,
        ref_id=ref_id,
        image_id=581857,
        split=split,
        sentences=sentences,
        category_id=1,
    )


REFS = [
    ref(0, 1719310, 'val', 'the lady with the blue shirt', 'lady'),
    ref(1, 1719310, 'train', 'a lady'),
    ref(2, np.int64(5), 'val', 'the dog'),
    ref(3, 6, 'testA', 'beyond'),
]


def dataset(folder, refs=REFS, ref_file='refs(unc).p', **kwargs):
    Image.new('RGB', (20, 10)).save(folder / 'COCO_train2014_000000581857.jpg')
    (folder / 'instances.json').write_text(json.dumps(INSTANCES))
    path = folder / ref_file
    if ref_file.endswith('.json'):
        path.write_text(json.dumps(refs, default=int))
    else:
        path.write_bytes(pickle.dumps(refs, protocol=2))
    return DATASETS.build(dict(type='RefCOCODataset', ref_file=ref_file, data_root=str(folder), **kwargs))


@pytest.mark.parametrize('ref_file', ['refs(unc).p', 'refs.json'])
def test_every_sentence_of_the_split_is_a_record(tmp_path, ref_file):
    data = dataset(tmp_path, ref_file=ref_file)
    assert [data[i]['expression'] for i in range(len(data))] == ['the lady with the blue shirt', 'lady', 'the dog']
    record = data[1]
    assert record['box'] == [2, 0, 10, 5] and record['caption'] == 'lady'
    assert (record['label'], record['ref_id'], record['sent_id'], record['split']) == ('person', 0, 1, 'val')
    assert (record['size'], record['images'][0].size) == ((10, 20), (20, 10))
    assert record['source'] == f'{tmp_path}/{ref_file}: ref 0, sentence 1'
    # Clipped to the image.
    assert data[2]['box'] == [0, 0, 20, 10] and data[2]['label'] == 'dog'
    assert len(dataset(tmp_path, ref_file=ref_file, split='train')) == 1


def test_both_tasks_follow_it(tmp_path):
    box = '[0.10,0.25,0.50,0.50]'
    grounding = dataset(tmp_path, pipeline=[dict(type='GroundingTask', decimals=2)])[1]
    assert grounding['messages'][0]['content'][1]['text'].endswith('this sentence describes: lady.')
    assert (grounding['gt_answer'], grounding['gt_boxes']) == (box, [[2, 0, 10, 5]])
    region = dataset(tmp_path, pipeline=[dict(type='RegionCaptionTask', decimals=2)])[1]
    assert region['messages'][0]['content'][1]['text'] == f'Please provide a short description for this region: {box}'
    assert (region['gt_answer'], region['gt_boxes']) == ('lady', [[2, 0, 10, 5]])


def test_training_is_no_test_mode_and_may_skip_records(tmp_path):
    assert dataset(tmp_path).test_mode and not dataset(tmp_path, split='train').test_mode
    with pytest.raises(ValueError, match="on_error='skip'"):
        dataset(tmp_path, on_error='skip')


def test_a_box_outside_its_image_names_file_and_ids(tmp_path):
    data = dataset(tmp_path, split='testA')
    with pytest.raises(RecordError, match=r'refs\(unc\)\.p: ref 3, sentence 30: annotation 6: '):
        data[0]


class Runs:
    def __reduce__(self):
        return os.mkdir, ('made-by-a-pickle',)


def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r'refs\(unc\)\.p: .*posix\.mkdir'):
        dataset(tmp_path, [*REFS, Runs()])
    assert not (tmp_path / 'made-by-a-pickle').exists()


def test_files_in_another_layout_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"split='test'.*refs\(unc\)\.p .*\['testA', 'train', 'val'\]"):
        dataset(tmp_path, split='test')
    with pytest.raises(ValueError, match=r"refs\(unc\)\.p: reference 1 lacks \['ann_id', 'ref_id', 'sentences'\]"):
        dataset(tmp_path, [REFS[0], dict(split='val')])
    with pytest.raises(ValueError, match=r"reference 0 lacks \['sent'\]"):
        dataset(tmp_path, [dict(REFS[0], sentences=[dict(sent_id=1)])])
    for wrong in (1 << 63, -1, '7', None, True):
        with pytest.raises(ValueError, match=r'refs\(unc\)\.p: reference 0 has ann_id='):
            dataset(tmp_path, [dict(REFS[0], ann_id=wrong)])
    with pytest.raises(ValueError, match='list of references, .*dict'):
        dataset(tmp_path, dict(val=REFS))
    with pytest.raises(ValueError, match=r'instances\.json: annotations .*\[77\]'):
        dataset(tmp_path, [ref(0, 77, 'val', 'nobody')])
    with pytest.raises(FileNotFoundError):
        dataset(tmp_path, ann_file='other.json')


def test_lengths_are_those_of_the_sentences(tmp_path):
    assert dataset(tmp_path).lengths.tolist() == [len('the lady with the blue shirt'), len('lady'), len('the dog')]
