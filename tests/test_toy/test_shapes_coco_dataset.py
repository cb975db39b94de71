"""ShapesCocoDataset: MMDetection's dataset on the drawn set, and the metric of a perfect predictor."""

import sys

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, init_default_scope
from pycocotools.mask import encode

import mergemix_mm  # noqa: F401
from mergemix_mm.toy.shapes_scene import SHAPES

NUMBERS = dict(num_train=6, num_val=8, image_size=64, varied=False)

pytest.importorskip('mmdet', reason='needs MMDetection: pip install -e .[detection]')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('drawn') / 'shapes'


def build(folder, steps=(), **kwargs):
    init_default_scope('mmdet')
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        *steps,
        dict(type='PackDetInputs', meta_keys=('img_id', 'ori_shape', 'img_shape', 'scale_factor')),
    ]
    return DATASETS.build(dict(type='ShapesCocoDataset', folder=folder, pipeline=pipeline, **NUMBERS | kwargs))


def test_it_draws_on_first_use_and_opens_either_split(folder):
    train, val = build(folder), build(folder, split='val')
    assert (len(train), len(val)) == (6, 8) and (train.test_mode, val.test_mode) == (False, True)
    assert train.metainfo['classes'] == SHAPES
    sample = train[0]
    assert sample['inputs'].shape == (3, 64, 64)
    instances = sample['data_samples'].gt_instances
    assert len(instances) == len(instances.bboxes) == len(instances.masks) == len(instances.labels) >= 1
    assert instances.labels.min() >= 0 and instances.labels.max() < len(SHAPES)


def test_boxes_and_masks_stay_together_through_resizing_flipping_and_padding(folder):
    steps = [
        dict(type='Resize', scale=(160, 96), keep_ratio=False),
        dict(type='RandomFlip', prob=1.0),
        dict(type='Pad', size_divisor=64),
    ]
    for sample in build(folder, steps):
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
def test_a_perfect_predictor_has_a_map_of_one(folder, size):
    from mmdet.evaluation import CocoMetric

    val = build(folder, [dict(type='Resize', scale=(size, size))], split='val')
    metric = CocoMetric(ann_file=str(folder / 'annotations/val.json'), metric=['bbox', 'segm'])
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


def test_a_predictor_of_other_classes_has_a_map_of_nought(folder):
    from mmdet.evaluation import CocoMetric

    val = build(folder, [dict(type='Resize', scale=(64, 64))], split='val')
    metric = CocoMetric(ann_file=str(folder / 'annotations/val.json'), metric='bbox')
    metric.dataset_meta = val.metainfo
    predictions = [perfect(sample) for sample in val]
    for prediction in predictions:
        labels = prediction['pred_instances']['labels']
        # A class that the image does not show.
        labels[:] = min(set(range(len(SHAPES))) - set(labels.tolist()))
    metric.process({}, predictions)
    assert metric.evaluate(size=len(val))['coco/bbox_mAP'] == 0.0


def test_an_unknown_split_and_another_set_are_errors(folder):
    with pytest.raises(ValueError, match="split='test' is unknown; use split='train' or split='val'"):
        build(folder, split='test')
    build(folder)
    with pytest.raises(FileExistsError, match='name another folder'):
        build(folder, num_val=9)


def test_without_mmdetection_the_message_is_the_command(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmdet.datasets', None)
    with pytest.raises(ImportError, match=r'MMDetection cannot be imported.*pip install -e \.\[detection\]'):
        DATASETS.build(dict(type='ShapesCocoDataset', folder=folder, **NUMBERS))
