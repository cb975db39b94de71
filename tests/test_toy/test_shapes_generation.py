"""Tests of ShapesGenerationDataset."""

from collections import Counter

import numpy as np
import pytest
from mmengine.registry import DATASETS

from mergemix_mm.datasets import ShapesGenerationDataset
from mergemix_mm.toy.shapes_scene import COLORS, COLUMNS, split_pairs


def records(split='train', length=300, **kwargs):
    dataset = ShapesGenerationDataset(split, length=length, **kwargs)
    return [dataset.get_data_info(index) for index in range(length)]


@pytest.mark.parametrize('clutter', [False, True])
def test_prompt_and_pixels_agree(clutter):
    plain = np.full(3, round(0.25 * 255))
    for record in records(length=100, clutter=clutter):
        words = record['prompt'].split()
        assert words[:2] == ['draw', 'a'] and words[2:4] == [record['gt_color'], record['gt_shape']]
        assert words[-1] == record['gt_position'] and words[-3] == ('in' if words[-1] == 'center' else 'on')
        pixels = np.asarray(record['images'][0]).astype(int)
        assert pixels.shape == (48, 48, 3)
        drawn = (np.abs(pixels - plain) > 8).any(-1)
        columns = set((np.flatnonzero(drawn.any(0)) // 16).tolist())
        assert (columns == {COLUMNS.index(record['gt_position'])}) != clutter


def test_all_places_and_the_pairs_of_the_split_come_equally_often():
    for split in ('train', 'val'):
        found = records(split, 600, image_size=24)
        pairs = Counter((record['gt_color'], record['gt_shape']) for record in found)
        assert set(pairs) == set(split_pairs(split))
        places = Counter(record['gt_position'] for record in found)
        assert set(places) == set(COLUMNS) and min(places.values()) > 150
        assert min(Counter(record['gt_color'] for record in found)[color] for color in COLORS) > 60


def test_same_index_is_the_same_record_and_seed_changes_it():
    first, again, other = (records(length=5, seed=seed)[3] for seed in (0, 0, 1))
    assert first['prompt'] == again['prompt'] and first['source'] == 'ShapesGenerationDataset[3]'
    np.testing.assert_array_equal(np.asarray(first['images'][0]), np.asarray(again['images'][0]))
    assert (np.asarray(first['images'][0]) != np.asarray(other['images'][0])).any()


def test_registered_with_a_pipeline_and_what_the_metric_needs():
    config = dict(type='ShapesGenerationDataset', length=4, pipeline=[lambda record: record['source']])
    dataset = DATASETS.build(config)
    assert dataset[-1] == 'ShapesGenerationDataset[3]' and dataset.modalities.all() and len(dataset) == 4
    assert list(dataset.metainfo['palette']) == list(COLORS) and dataset.metainfo['columns'] == COLUMNS
    with pytest.raises(ValueError, match='ShapesGenerationDataset: image_size=8 must be an integer of at least 24'):
        ShapesGenerationDataset(image_size=8)
