"""Drawn shapes in COCO's format: what the files hold, that they repeat, and what MMDetection makes of them."""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.mask import encode

import mergemix_mm.toy.coco as drawn_coco
from mergemix_mm.toy import write_shapes_coco
from mergemix_mm.toy.drawing import PALETTE
from mergemix_mm.toy.scenes import SHAPES

SMALL = dict(num_train=5, num_val=3, image_size=48)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp('drawn') / 'shapes'
    write_shapes_coco(target, num_train=60, num_val=3, image_size=64, varied=False)
    return target


@pytest.fixture(scope='module')
def varied(tmp_path_factory):
    target = tmp_path_factory.mktemp('drawn') / 'varied'
    write_shapes_coco(target, num_train=64, num_val=8, image_size=64)
    return target


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def test_layout_is_that_of_coco(folder):
    coco = COCO(folder / 'annotations/train.json')
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == list(SHAPES)
    assert len(coco.getImgIds()) == 60 and len(COCO(folder / 'annotations/val.json').getImgIds()) == 3
    for image in coco.loadImgs(coco.getImgIds()):
        pixels = np.asarray(Image.open(folder / 'train' / image['file_name']))
        assert pixels.shape == (image['height'], image['width'], 3) == (64, 64, 3)
        assert 1 <= len(coco.getAnnIds(image['id'])) <= 6


def test_boxes_are_tight_around_the_masks_and_masks_do_not_overlap(folder):
    coco = COCO(folder / 'annotations/train.json')
    for image in coco.getImgIds():
        covered = np.zeros((64, 64), dtype=int)
        for annotation in coco.loadAnns(coco.getAnnIds(image)):
            mask = coco.annToMask(annotation)
            x, y, width, height = annotation['bbox']
            inside = mask[y : y + height, x : x + width]
            assert inside.sum() == mask.sum() == annotation['area'] > 0
            assert all(inside[edge].any() for edge in (0, -1, np.s_[:, 0], np.s_[:, -1]))
            covered += mask
        assert covered.max() == 1


def test_masks_lie_on_the_pixels_of_one_colour(folder):
    coco = COCO(folder / 'annotations/train.json')
    colors = np.array(list(PALETTE.values())) / np.linalg.norm(list(PALETTE.values()), axis=1, keepdims=True)
    for annotation in coco.loadAnns(coco.getAnnIds())[:40]:
        name = coco.loadImgs(annotation['image_id'])[0]['file_name']
        pixels = np.asarray(Image.open(folder / 'train' / name))[coco.annToMask(annotation) == 1] / 255
        likeness = (pixels / np.linalg.norm(pixels, axis=1, keepdims=True)) @ colors.T
        found = np.bincount(likeness.argmax(axis=1), minlength=len(colors))
        assert found.max() >= 0.8 * len(pixels)


def test_images_of_a_varied_set_differ_in_size_and_say_so(varied):
    for split, number in (('train', 64), ('val', 8)):
        coco = COCO(varied / f'annotations/{split}.json')
        sizes = []
        for image in coco.loadImgs(coco.getImgIds()):
            with Image.open(varied / split / image['file_name']) as file:
                assert file.size == (image['width'], image['height'])
                assert file.mode == ('L' if image['id'] % 8 == 2 else 'RGB')
            assert min(file.size) >= 24 and max(file.size) <= 64
            sizes.append(file.size)
        assert len(set(sizes)) > 0.7 * number
        assert (
            min(width / height for width, height in sizes) < 0.8
            and max(width / height for width, height in sizes) > 1.25
        )


def test_a_varied_set_holds_images_with_nothing_with_crowds_and_with_things_cut_by_the_border(varied):
    coco = COCO(varied / 'annotations/train.json')
    shown = {index: coco.loadAnns(coco.getAnnIds(index)) for index in coco.getImgIds()}
    assert {index for index, things in shown.items() if not things} == set(range(3, 64, 8))
    crowds = {index: [thing['iscrowd'] for thing in things] for index, things in shown.items() if index % 8 == 1}
    assert all(flags[0] == 1 and sum(flags) == 1 for flags in crowds.values()) and [1] in crowds.values()
    assert not any(thing['iscrowd'] for index, things in shown.items() if index % 8 != 1 for thing in things)
    overhanging = 0
    for index, things in shown.items():
        image = coco.loadImgs(index)[0]
        for thing in things:
            counts = thing['segmentation']['counts']
            assert isinstance(counts, list if thing['iscrowd'] else str)
            mask = coco.annToMask(thing)
            assert mask.shape == (image['height'], image['width']) and mask.sum() == thing['area'] > 0
            x, y, width, height = thing['bbox']
            rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
            assert (x, y) == (columns[0], rows[0])
            for start, length, last, end in ((x, width, columns[-1], 'width'), (y, height, rows[-1], 'height')):
                over = 0.4 if last + 1 == image[end] else 0
                assert start + length == pytest.approx(last + 1 + over)
                overhanging += over > 0
    assert overhanging >= 6


def test_all_shapes_and_three_sizes_appear(folder):
    annotations = json.loads((folder / 'annotations/train.json').read_text())['annotations']
    assert {annotation['category_id'] for annotation in annotations} == set(range(1, len(SHAPES) + 1))
    sides = np.array([max(annotation['bbox'][2:]) for annotation in annotations])
    # Diameters are 64 to 88 % of a cell of 32, 21.3 and 16 pixels; crosses and rings may lose a pixel at an end.
    assert (sides > 19).any() and ((sides > 14.1) & (sides < 20.5)).any() and (sides < 13).any()


def test_the_same_numbers_give_the_same_files_and_others_give_others(tmp_path):
    np.random.seed(1)
    for name, more in (('a', {}), ('b', {}), ('seed', dict(seed=1)), ('longer', dict(num_train=6))):
        write_shapes_coco(tmp_path / name, **SMALL | more)
    a, b, seed, longer = (contents(tmp_path / name) for name in ('a', 'b', 'seed', 'longer'))
    assert a == b
    assert not any(a[name] == seed[name] for name in a)
    assert all(a[name] == longer[name] for name in a if name.suffix == '.png')
    assert len(set(a.values())) == len(a)  # Also between the splits.


def test_a_set_that_is_there_is_left_alone(tmp_path, monkeypatch):
    write_shapes_coco(tmp_path / 'set', **SMALL)
    monkeypatch.setattr(drawn_coco, 'draw_shapes', None)
    before = os.stat(tmp_path / 'set/annotations/val.json').st_mtime_ns
    write_shapes_coco(tmp_path / 'set', **SMALL)
    assert os.stat(tmp_path / 'set/annotations/val.json').st_mtime_ns == before


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    draw, calls = drawn_coco.draw_shapes, []

    def interrupted(size, rng, **kwargs):
        calls.append(size)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return draw(size, rng, **kwargs)

    monkeypatch.setattr(drawn_coco, 'draw_shapes', interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_shapes_coco(tmp_path / 'set', **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_several_that_draw_at_once_end_with_one_set(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(write_shapes_coco, tmp_path / 'set', **SMALL) for _ in range(4)]:
            done.result()
    write_shapes_coco(tmp_path / 'alone', **SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['alone', 'set']
    assert contents(tmp_path / 'set') == contents(tmp_path / 'alone')


def test_another_set_or_other_files_are_never_overwritten(tmp_path):
    write_shapes_coco(tmp_path / 'set', **SMALL)
    with pytest.raises(FileExistsError, match=r"'num_train': 5.*'num_train': 6"):
        write_shapes_coco(tmp_path / 'set', **SMALL | dict(num_train=6))
    with pytest.raises(FileExistsError, match=r"'varied': True.*'varied': False"):
        write_shapes_coco(tmp_path / 'set', **SMALL, varied=False)
    path = tmp_path / 'set/annotations/val.json'
    content = json.loads(path.read_text())
    del content['info']['settings']['varied']  # As the first versions wrote it.
    path.write_text(json.dumps(content))
    for varied in (True, False):
        with pytest.raises(FileExistsError, match=r"'seed': 0}.*'varied'"):
            write_shapes_coco(tmp_path / 'set', **SMALL, varied=varied)
    (tmp_path / 'mine').mkdir()
    with pytest.raises(FileExistsError, match='mine'):
        write_shapes_coco(tmp_path / 'mine', **SMALL)


@pytest.mark.parametrize(('key', 'value'), [('num_train', 0), ('num_val', 1.5), ('image_size', 16), ('seed', -1)])
def test_numbers_outside_their_range_are_errors(tmp_path, key, value):
    with pytest.raises(ValueError, match='varied=1'):
        write_shapes_coco(tmp_path / 'set', **SMALL, varied=1)
    with pytest.raises(ValueError, match=f'{key}={value}'):
        write_shapes_coco(tmp_path / 'set', **SMALL | {key: value})
    assert list(tmp_path.iterdir()) == []


NUMBERS = dict(num_train=6, num_val=8, image_size=64, varied=False)


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    return tmp_path_factory.mktemp('drawn') / 'shapes'


def build(drawn, steps=(), **kwargs):
    pytest.importorskip('mmdet', reason='needs MMDetection: pip install -e .[detection]')
    init_default_scope('mmdet')
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        *steps,
        dict(type='PackDetInputs', meta_keys=('img_id', 'ori_shape', 'img_shape', 'scale_factor')),
    ]
    return DATASETS.build(dict(type='ShapesCocoDataset', folder=drawn, pipeline=pipeline, **NUMBERS | kwargs))


def test_it_draws_on_first_use_and_opens_either_split(drawn):
    train, val = build(drawn), build(drawn, split='val')
    assert (len(train), len(val)) == (6, 8) and (train.test_mode, val.test_mode) == (False, True)
    assert train.metainfo['classes'] == SHAPES
    sample = train[0]
    assert sample['inputs'].shape == (3, 64, 64)
    instances = sample['data_samples'].gt_instances
    assert len(instances) == len(instances.bboxes) == len(instances.masks) == len(instances.labels) >= 1
    assert instances.labels.min() >= 0 and instances.labels.max() < len(SHAPES)


def test_boxes_and_masks_stay_together_through_resizing_flipping_and_padding(drawn):
    steps = [
        dict(type='Resize', scale=(160, 96), keep_ratio=False),
        dict(type='RandomFlip', prob=1.0),
        dict(type='Pad', size_divisor=64),
    ]
    for sample in build(drawn, steps):
        assert sample['inputs'].shape == (3, 128, 192)
        instances = sample['data_samples'].gt_instances
        for box, mask in zip(instances.bboxes.tensor.numpy(), instances.masks.masks):
            rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
            around = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
            assert np.abs(box - around).max() <= 2  # Masks are resized to the nearest pixel, 2.5 of them to one.


def perfect(sample):
    """What the metric gets from a model that gives the truth, in the image as it was before the pipeline."""
    data = sample['data_samples']
    instances = data.gt_instances
    masks = instances.masks.resize(data.ori_shape).masks
    prediction = dict(
        bboxes=instances.bboxes.tensor / torch.tensor(data.scale_factor * 2),
        labels=instances.labels,
        scores=torch.ones(len(instances)),
        masks=[encode(np.asfortranarray(mask)) for mask in masks],
    )
    return dict(img_id=data.img_id, ori_shape=data.ori_shape, pred_instances=prediction)


@pytest.mark.parametrize('size', [64, 192])
def test_a_perfect_predictor_has_a_map_of_one(drawn, size):
    from mmdet.evaluation import CocoMetric

    val = build(drawn, [dict(type='Resize', scale=(size, size))], split='val')
    metric = CocoMetric(ann_file=str(drawn / 'annotations/val.json'), metric=['bbox', 'segm'])
    metric.dataset_meta = val.metainfo
    metric.process({}, [perfect(sample) for sample in val])
    results = metric.evaluate(size=len(val))
    assert results['coco/bbox_mAP'] == results['coco/segm_mAP'] == 1.0


def test_a_perfect_predictor_of_a_varied_set_has_a_map_of_one_too(tmp_path):
    # What it does not find are crowds, which count neither way, and images that show nothing.
    from mmdet.evaluation import CocoMetric

    steps = [dict(type='Resize', scale=(96, 64), keep_ratio=True)]
    val = build(tmp_path / 'set', steps, split='val', varied=True)
    assert len({sample['inputs'].shape for sample in val}) > 1
    assert [len(sample['data_samples'].gt_instances) for sample in val][3] == 0
    assert [len(sample['data_samples'].ignored_instances) for sample in val] == [0, 1, 0, 0, 0, 0, 0, 0]
    metric = CocoMetric(ann_file=str(tmp_path / 'set/annotations/val.json'), metric='bbox')
    metric.dataset_meta = val.metainfo
    metric.process({}, [perfect(sample) for sample in val])
    assert metric.evaluate(size=len(val))['coco/bbox_mAP'] == 1.0


def test_training_leaves_out_images_that_show_nothing_where_the_config_says_so(tmp_path):
    numbers = dict(num_train=24, varied=True)
    assert len(build(tmp_path / 'set', **numbers)) == 24
    kept = build(tmp_path / 'set', **numbers, filter_cfg=dict(filter_empty_gt=True, min_size=32))
    whole = build(tmp_path / 'set', **numbers)
    infos = {index: whole.get_data_info(index) for index in range(24)}
    sizes = {index: min(info['height'], info['width']) for index, info in infos.items()}
    assert {kept.get_data_info(i)['img_id'] for i in range(len(kept))} == {
        i for i in range(24) if i % 8 != 3 and sizes[i] >= 32
    }


def test_a_predictor_of_other_classes_has_a_map_of_nought(drawn):
    from mmdet.evaluation import CocoMetric

    val = build(drawn, [dict(type='Resize', scale=(64, 64))], split='val')
    metric = CocoMetric(ann_file=str(drawn / 'annotations/val.json'), metric='bbox')
    metric.dataset_meta = val.metainfo
    predictions = [perfect(sample) for sample in val]
    for prediction in predictions:
        labels = prediction['pred_instances']['labels']
        # A class that the image does not show.
        labels[:] = min(set(range(len(SHAPES))) - set(labels.tolist()))
    metric.process({}, predictions)
    assert metric.evaluate(size=len(val))['coco/bbox_mAP'] == 0.0


def test_an_unknown_split_and_another_set_are_errors(drawn):
    with pytest.raises(ValueError, match="split='test'"):
        build(drawn, split='test')
    build(drawn)
    with pytest.raises(FileExistsError, match="'num_val': 9"):
        build(drawn, num_val=9)


def test_without_mmdetection_the_message_is_the_command(drawn, monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmdet.datasets', None)
    with pytest.raises(ImportError, match=r'pip install -e \.\[detection\]'):
        DATASETS.build(dict(type='ShapesCocoDataset', folder=drawn, **NUMBERS))
