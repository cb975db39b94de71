"""Tests of DigitsDataset."""

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS

from mergemix_mm.toy import DigitsDataset


def _all(**kwargs):
    dataset = DigitsDataset(**kwargs)
    return [dataset.get_data_info(index) for index in range(len(dataset))]


def _sources(**kwargs):
    return [data['source_index'] for data in _all(**kwargs)]


def test_both_splits_together_hold_every_digit_once():
    train, test = _sources(split='train'), _sources(split='test')
    assert sorted(train + test) == list(range(1797))


@pytest.mark.parametrize('test_ratio', [0.2, 0.5, 0.001, 0.999])
def test_split_is_stratified(test_ratio):
    train = np.bincount([data['gt_label'] for data in _all(split='train', test_ratio=test_ratio)], minlength=10)
    test = np.bincount([data['gt_label'] for data in _all(split='test', test_ratio=test_ratio)], minlength=10)
    expected = np.clip(np.rint(test_ratio * (train + test)), 1, train + test - 1)
    np.testing.assert_array_equal(test, expected)


def test_low_data_split_tests_on_all_the_rest():
    train, test = _all(split='train', train_per_class=20), _all(split='test', train_per_class=20)
    assert np.bincount([data['gt_label'] for data in train]).tolist() == [20] * 10
    assert len(test) == 1797 - 200
    assert not {data['source_index'] for data in train} & {data['source_index'] for data in test}


def test_smallest_class_bounds_train_per_class():
    assert len(DigitsDataset(train_per_class=173)) == 1730
    with pytest.raises(ValueError, match=r'train_per_class=174 .*173'):
        DigitsDataset(train_per_class=174)


def test_seed_alone_chooses_the_split():
    np.random.seed(1)
    first = _sources(train_per_class=20, seed=3)
    np.random.seed(2)
    assert _sources(train_per_class=20, seed=3) == first
    assert _sources(train_per_class=20, seed=4) != first


def test_plain_image_shows_its_digit_at_full_size():
    from sklearn.datasets import load_digits

    digits = load_digits()
    for data in _all(split='test')[:50]:
        image = data['img']
        assert image.shape == (32, 32, 3) and image.dtype == np.uint8
        assert data['gt_mask'][image[..., 0] > 64].all() and not data['gt_mask'][image[..., 0] < 64].any()
        assert data['gt_label'] == digits.target[data['source_index']]
        blocks = image[..., 0].reshape(8, 4, 8, 4).mean((1, 3))
        ink = digits.images[data['source_index']]
        assert np.corrcoef(blocks.ravel(), ink.ravel())[0, 1] > 0.97


def test_cluttered_image_is_the_same_in_every_split_and_for_every_seed():
    one = {data['source_index']: data for seed in (0, 1) for data in _all(split='train', clutter=True, seed=seed)}
    two = {data['source_index']: data for data in _all(split='test', clutter=True, train_per_class=3, seed=5)}
    shared = sorted(one.keys() & two.keys())
    assert len(shared) > 1500
    for index in shared:
        np.testing.assert_array_equal(one[index]['img'], two[index]['img'])
        np.testing.assert_array_equal(one[index]['gt_mask'], two[index]['gt_mask'])


def test_mask_covers_the_bright_digit_within_a_quarter_of_the_image():
    corners = set()
    for data in _all(clutter=True):
        mask, image = data['gt_mask'], data['img'].astype(float).mean(-1)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask.shape == (32, 32) and mask.dtype == bool
        assert 8 <= rows[-1] - rows[0] + 1 <= 16 and columns[-1] - columns[0] + 1 <= 16
        assert image[mask].mean() > image[~mask].mean() + 40
        corners.add((rows[0], columns[0]))
    assert len(corners) > 100


def test_background_does_not_tell_the_class():
    from sklearn.linear_model import LogisticRegression

    data = _all(clutter=True)
    labels = np.array([sample['gt_label'] for sample in data])
    masks = np.stack([sample['gt_mask'] for sample in data])
    images = np.stack([sample['img'] for sample in data]).astype(np.float32)
    # The digit is left out with a seam of two pixels around it, and so is the place of another sample's digit, so that
    # the outline of the hole does not give the class away.
    hidden = torch.nn.functional.max_pool2d(torch.from_numpy(masks[:, None]).float(), 5, 1, 2)[:, 0].bool().numpy()
    background = np.where((hidden | np.roll(hidden, 1, axis=0))[..., None], np.nan, images)
    features = np.stack([np.nanmean(background, (1, 2)), np.nanstd(background, (1, 2))], 1).reshape(len(labels), -1)
    features = (features - features.mean(0)) / features.std(0)
    half = len(labels) // 2
    accuracy = (
        LogisticRegression(max_iter=500).fit(features[:half], labels[:half]).score(features[half:], labels[half:])
    )
    assert accuracy < 0.16


def test_samples_go_straight_into_pack_inputs():
    dataset = DATASETS.build(
        dict(
            type='DigitsDataset',
            split='test',
            clutter=True,
            pipeline=[
                dict(type='RandomFlip', prob=0.5, direction='horizontal'),
                dict(type='PackInputs', algorithm_keys=('gt_mask',), meta_keys=('img_shape', 'ori_shape')),
            ],
        )
    )
    packed = dataset[5]
    sample = packed['data_samples']
    assert packed['inputs'].shape == (3, 32, 32) and packed['inputs'].dtype == torch.uint8
    assert sample.gt_label.tolist() == [dataset.get_data_info(5)['gt_label']]
    np.testing.assert_array_equal(sample.gt_mask, dataset.get_data_info(5)['gt_mask'])
    assert sample.img_shape == sample.ori_shape == (32, 32)


def test_a_transform_that_writes_into_the_image_does_not_change_the_dataset():
    for serialize_data in (True, False):
        dataset = DigitsDataset(serialize_data=serialize_data)
        before = dataset[0]['img'].copy()
        dataset[0]['img'][:] = 7
        np.testing.assert_array_equal(dataset[0]['img'], before)


def test_options_of_the_base_dataset_work():
    dataset = DigitsDataset(split='test', indices=12, lazy_init=True)
    assert "Haven't been initialized" in repr(dataset)
    assert ''.join(dataset.CLASSES) == '0123456789'
    dataset.full_init()
    assert len(dataset) == 12 and dataset.test_mode
    assert 'Split: \ttest (seed 0)' in repr(dataset)


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(split='val'), r"split='val'"),
        (dict(test_ratio=0.0), r'test_ratio=0\.0'),
        (dict(test_ratio=1), r'test_ratio=1'),
        (dict(test_ratio='0.2'), r"test_ratio='0\.2'"),
        (dict(test_ratio=float('nan')), r'test_ratio=nan'),
        (dict(train_per_class=True), r'train_per_class=True'),
        (dict(train_per_class=0), r'train_per_class=0'),
        (dict(train_per_class=2.5), r'train_per_class=2\.5'),
        (dict(seed=-1), r'seed=-1'),
    ],
)
def test_bad_arguments_name_the_key_and_what_is_allowed(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DigitsDataset(**kwargs)
