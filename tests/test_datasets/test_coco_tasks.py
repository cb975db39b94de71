"""Tests of COCOTaskDataset and the files in COCO's layout that it reads."""

import json
import pickle
from copy import deepcopy

import pytest
from mmengine.registry import DATASETS
from PIL import Image

from mergemix_mm.datasets import RecordError

# Images and annotations out of order, ids that are no places, and a crowd.
INSTANCES = dict(
    info=dict(year=2017),
    images=[
        dict(id=9, file_name='b.png', height=10, width=20, license=3),
        dict(id=4, file_name='a.png', height=20, width=10),
        dict(id=5, file_name='empty.png', height=20, width=10),
    ],
    annotations=[
        dict(id=101, image_id=4, category_id=18, bbox=[1, 2, 3, 4], iscrowd=0, segmentation=[[0.5, 1] * 8]),
        dict(id=102, image_id=9, category_id=1, bbox=[0, 0, 20.4, 10], iscrowd=0),
        dict(id=103, image_id=9, category_id=18, bbox=[5.5, 5, 2, 2], iscrowd=0),
        dict(id=104, image_id=9, category_id=1, bbox=[1, 1, 1, 1], iscrowd=0),
        dict(id=105, image_id=9, category_id=1, bbox=[0, 0, 5, 5], iscrowd=1, segmentation=dict(counts=[1])),
    ],
    categories=[dict(id=1, name='person'), dict(id=18, name='dog', supercategory='animal')],
)
PERSONS = dict(
    images=INSTANCES['images'],
    annotations=[
        dict(id=1, image_id=9, category_id=1, bbox=[2, 0, 8, 5], keypoints=[4, 1, 2, 0, 0, 0, 10, 5, 1], iscrowd=0),
        dict(id=2, image_id=9, category_id=1, bbox=[2, 0, 8, 5], keypoints=[0] * 9, num_keypoints=0, iscrowd=0),
        dict(id=3, image_id=9, category_id=1, bbox=[2, 0, 8, 5], keypoints=[4, 1, 2] * 3, iscrowd=1),
        dict(id=4, image_id=4, category_id=1, bbox=[2, 0, 8, 5], keypoints=[0, 0, 0, 9, 19, 2, 0, 0, 0], iscrowd=0),
    ],
    categories=[dict(id=1, name='person', keypoints=['nose', 'left_eye', 'right_eye'], skeleton=[[1, 2]])],
)
CAPTIONS = dict(
    annotations=[dict(id=7, image_id=4, caption='A dog. \n'), dict(id=6, image_id=9, caption='A man.')],
    images=INSTANCES['images'],
)


def dataset(folder, content, kind='detection', **kwargs):
    for name, size in (('a.png', (10, 20)), ('b.png', (20, 10))):
        Image.new('RGB', size).save(folder / name)
    (folder / 'coco.json').write_text(json.dumps(content))
    return DATASETS.build(
        dict(type='COCOTaskDataset', ann_file='coco.json', kind=kind, data_root=str(folder), **kwargs)
    )


def changed(content, place, **fields):
    content = deepcopy(content)
    content['annotations'][place].update(fields)
    return content


def fields(record, *names):
    return tuple(record[name] for name in names)


def test_detection_has_a_record_per_image_and_category_without_crowds(tmp_path):
    data = dataset(tmp_path, INSTANCES)
    found = [fields(data[i], 'image_id', 'label', 'category_id', 'boxes') for i in range(len(data))]
    assert found == [
        (9, 'person', 1, [[0, 0, 20, 10], [1, 1, 2, 2]]),
        (9, 'dog', 18, [[5.5, 5, 7.5, 7]]),
        (4, 'dog', 18, [[1, 2, 4, 6]]),
    ]
    record = data[2]
    assert (record['size'], record['images'][0].size, record['img_path']) == ((20, 10), (10, 20), ['a.png'])
    assert record['source'] == f'{tmp_path}/coco.json: image 4, category 18'
    assert data.modalities.tolist() == [True] * 3
    assert data.metainfo['classes'] == ['person', 'dog']


def test_detection_is_written_by_its_task(tmp_path):
    data = dataset(tmp_path, INSTANCES, pipeline=[dict(type='DetectionTask', decimals=2)])
    question, answer = data[0]['messages']
    assert question['content'][1]['text'] == 'Detect all person shown in the image.'
    assert answer['content'][0]['text'] == '[0.00,0.25,1.00,0.75;0.05,0.30,0.10,0.35]'
    assert fields(data[0], 'gt_boxes', 'image_size') == ([[0, 0, 20, 10], [1, 1, 2, 2]], (10, 20))


def test_layout_has_a_record_per_image(tmp_path):
    data = dataset(tmp_path, INSTANCES, kind='layout', pipeline=[dict(type='LayoutTask', decimals=2)])
    assert len(data) == 2
    assert fields(data[0], 'image_id', 'labels') == (9, ['person', 'dog', 'person'])
    assert data[0]['gt_answer'].startswith('<p>person</p>[0.00,0.25,1.00,0.75;0.05')
    assert data[0]['gt_boxes'] == [[0, 0, 20, 10], [5.5, 5, 7.5, 7], [1, 1, 2, 2]]
    assert data[1]['source'].endswith('coco.json: image 4')


def test_keypoints_have_a_record_per_person_with_the_annotated_points(tmp_path):
    data = dataset(tmp_path, PERSONS, kind='keypoints', pipeline=[dict(type='PoseTask')])
    assert len(data) == 2
    assert fields(data[0], 'box', 'keypoints', 'keypoint_names') == (
        [2, 0, 10, 5],
        [[4, 1], [10, 5]],
        ['nose', 'right_eye'],
    )
    assert data[0]['gt_answer'] == '<p>nose</p>[0.200,0.300] <p>right_eye</p>[0.500,0.500]'
    assert data[1]['gt_answer'] == '<p>left_eye</p>[0.700,0.950]'
    assert data[1]['source'].endswith('coco.json: annotation 4')


def test_captions_need_no_categories(tmp_path):
    data = dataset(tmp_path, CAPTIONS, kind='captions', pipeline=[dict(type='CaptionTask')])
    assert [fields(data[i], 'image_id', 'gt_answer') for i in range(2)] == [(4, 'A dog.'), (9, 'A man.')]
    assert data[1]['source'].endswith('coco.json: annotation 6')


def test_worker_processes_get_a_copy(tmp_path):
    data = dataset(tmp_path, INSTANCES)
    assert pickle.loads(pickle.dumps(data))[1]['boxes'] == data[1]['boxes']


def test_images_without_a_size_are_measured_by_the_task(tmp_path):
    content = deepcopy(INSTANCES)
    for image in content['images']:
        del image['height']
    assert dataset(tmp_path, content)[0]['boxes'][0] == [0, 0, 20.4, 10]
    data = dataset(tmp_path, content, pipeline=[dict(type='DetectionTask')])
    assert data[0]['gt_boxes'][0] == [0, 0, 20, 10]


@pytest.mark.parametrize(
    ('box', 'found'),
    [
        ([0, 0, 21, 10], r'\[0\.0, 0\.0, 21\.0, 10\.0\] .*20 x 10'),
        ([5, 5, -2, 2], 'x2 < x1'),
        ([5, 5, 2], r'bbox=\[5, 5, 2\]'),
        (None, 'bbox=None'),
        ([5, 5, 0, 2], r'bbox=\[5, 5, 0, 2\] .* 0'),
        ([5, 5, 2, 0.0], 'width or height 0'),
        ([20, 5, 0.5, 2], 'width or height 0 in its image'),
        (['5', '5', '2', '2'], 'bbox='),
        ([5, 5, 10**400, 2], 'bbox='),
    ],
)
def test_a_box_that_cannot_be_names_file_and_annotation(tmp_path, box, found):
    for kind in ('detection', 'layout'):
        data = dataset(tmp_path, changed(INSTANCES, 2, bbox=box), kind=kind)
        with pytest.raises(RecordError, match=rf'coco\.json: image 9.*: annotation 103: .*{found}'):
            [data[i] for i in range(len(data))]


def test_a_box_that_cannot_be_is_found_without_the_size_of_the_image_too(tmp_path):
    for box, found in (([5, 5, 0, 2], 'width or height 0'), ([5, 5, -2, 2], 'is not a box')):
        content = deepcopy(changed(INSTANCES, 2, bbox=box))
        for image in content['images']:
            del image['height']
        data = dataset(tmp_path, content)
        with pytest.raises(RecordError, match=f'annotation 103: .*{found}'):
            [data[i] for i in range(len(data))]


def test_records_with_a_box_of_no_width_are_skipped_on_demand(tmp_path):
    data = dataset(tmp_path, changed(INSTANCES, 2, bbox=[5, 5, 0, 2]), on_error='skip')
    found = [data[i]['boxes'] for i in range(len(data))]
    assert data.num_skipped == 1 and all(box[2] > box[0] and box[3] > box[1] for boxes in found for box in boxes)


def test_bad_key_points_name_the_annotation(tmp_path):
    data = dataset(tmp_path, changed(PERSONS, 0, keypoints=[4, 1, 2, 0, 0, 0, 22, 5, 1]), kind='keypoints')
    with pytest.raises(RecordError, match=r'annotation 1: \[22\.0, 5\.0\]'):
        data[0]
    data = dataset(tmp_path, changed(PERSONS, 0, keypoints=[4, 1, 2]), kind='keypoints')
    with pytest.raises(RecordError, match='annotation 1: 3 numbers .*3 key points'):
        data[0]


def test_files_in_another_layout_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"kind='boxes'.*detection, layout"):
        dataset(tmp_path, INSTANCES, kind='boxes')
    with pytest.raises(ValueError, match="'images'"):
        dataset(tmp_path, dict(annotations=[]))
    with pytest.raises(ValueError, match=r'coco\.json: annotations'):
        dataset(tmp_path, dict(INSTANCES, annotations=[]))
    with pytest.raises(ValueError, match=r"coco\.json:1: .*id and image_id.*\['id'\]"):
        dataset(tmp_path, dict(INSTANCES, annotations=[dict(id=3)]))
    with pytest.raises(ValueError, match=r'coco\.json: images .*\[77\]'):
        dataset(tmp_path, changed(INSTANCES, 0, image_id=77))
    with pytest.raises(ValueError, match=r'coco\.json: images .*id 9'):
        dataset(tmp_path, dict(INSTANCES, images=INSTANCES['images'] + INSTANCES['images'][:1]))
    with pytest.raises(ValueError, match=r'coco\.json'):
        dataset(tmp_path, dict(INSTANCES, annotations=INSTANCES['annotations'][4:]))
    with pytest.raises(RecordError, match=r'image 4, category 77: annotation 101: .*category 77'):
        dataset(tmp_path, changed(INSTANCES, 0, category_id=77))[2]


@pytest.mark.parametrize('value', [2**63, 10**400, -1, True, 1.0, '1'])
def test_ids_beyond_64_bits_name_file_and_line(tmp_path, value):
    for key in ('id', 'image_id'):
        with pytest.raises(ValueError, match=r'coco\.json:1.*: .*id and image_id') as error:
            dataset(tmp_path, changed(INSTANCES, 0, **{key: value}))
        assert len(str(error.value)) < 400
    data = dataset(tmp_path, changed(INSTANCES, 0, category_id=value))
    with pytest.raises(RecordError, match='annotation 101: .*category'):
        [data[i] for i in range(len(data))]


@pytest.mark.parametrize(
    ('category', 'message'),
    [
        (dict(id=[1], name='x'), r'category .*\[1\]'),
        (dict(id=2**64, name='x'), 'category .*id'),
        (dict(id=3, name=None), 'category .*name'),
        (dict(id=3), r"category lacks \['name'\]"),
    ],
)
def test_categories_in_another_layout_are_refused(tmp_path, category, message):
    content = dict(INSTANCES, categories=[*INSTANCES['categories'], category])
    with pytest.raises(ValueError, match=rf'coco\.json:1 \(record \d+\): .*{message}'):
        dataset(tmp_path, content)
    with pytest.raises(ValueError, match='has the id 1,|id 1'):
        dataset(tmp_path, dict(INSTANCES, categories=INSTANCES['categories'] * 2))


def test_sizes_and_file_names_of_another_type_are_record_errors(tmp_path):
    for more in (dict(height='10'), dict(width=0), dict(height=2.5), dict(file_name=['x'])):
        content = deepcopy(INSTANCES)
        for image in content['images']:
            image.update(more)
        with pytest.raises(RecordError, match=f'image .*: ({next(iter(more))}|height and width)'):
            dataset(tmp_path, content)[0]


def test_lengths_grow_with_the_boxes_and_the_captions(tmp_path):
    assert (dataset(tmp_path, INSTANCES).lengths / 26).tolist() == [2, 1, 1]
    found = dataset(tmp_path, CAPTIONS, 'captions').lengths.tolist()
    assert found == [len(json.dumps(annotation)) for annotation in CAPTIONS['annotations']]
