"""Text-to-image on drawn shapes: prompts agree with pixels, and the metric reads true images and nothing from noise."""

from collections import Counter

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS
from mmpretrain.structures import DataSample

from mergemix_mm.toy import ShapesGenerationDataset, ShapesGenerationMetric
from mergemix_mm.toy.scenes import COLORS, COLUMNS, split_pairs


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
    with pytest.raises(ValueError, match='ShapesGenerationDataset: image_size=8'):
        ShapesGenerationDataset(image_size=8)


def evaluate(samples, metainfo=None):
    evaluator = Evaluator(dict(type='ShapesGenerationMetric'))
    evaluator.dataset_meta = ShapesGenerationDataset.METAINFO if metainfo is None else metainfo
    for start in range(0, len(samples), 16):
        evaluator.process(samples[start : start + 16])
    return evaluator.evaluate(len(samples))


def sample(image, color='red', position='left'):
    found = DataSample()
    found.set_field(torch.as_tensor(image, dtype=torch.float32).permute(2, 0, 1), 'pred_image')
    found.set_field(color, 'gt_color')
    found.set_field(position, 'gt_position')
    return found


def true_samples(length=300, change=lambda image: image, **kwargs):
    dataset = ShapesGenerationDataset(length=length, **kwargs)
    infos = [dataset.get_data_info(index) for index in range(length)]
    images = [change(np.asarray(info['images'][0]) / 255) for info in infos]
    return [sample(image, info['gt_color'], info['gt_position']) for image, info in zip(images, infos)]


def test_true_images_are_right():
    for split in ('train', 'val'):
        values = evaluate(true_samples(split=split))
        expected = dict(color=100, position=100, both=100, unreadable=0)
        assert values == {f'generation/{name}': value for name, value in expected.items()}
    values = evaluate(true_samples(clutter=True))
    assert min(values[f'generation/{name}'] for name in ('color', 'position', 'both')) >= 99


def test_small_errors_of_a_decoder_do_not_matter():
    rng = np.random.default_rng(0)
    noisy = true_samples(change=lambda image: (image + 0.05 * rng.standard_normal(image.shape)).clip(0, 1))
    assert evaluate(noisy)['generation/both'] > 98


def test_noise_is_at_chance():
    rng = np.random.default_rng(0)
    values = evaluate(true_samples(400, change=lambda image: rng.random(image.shape), image_size=24))
    assert values['generation/color'] == pytest.approx(100 / 6, abs=8)
    assert values['generation/position'] == pytest.approx(100 / 3, abs=10)
    assert values['generation/both'] == pytest.approx(100 / 18, abs=5)


def test_color_and_position_are_counted_apart():
    mirrored = evaluate(true_samples(change=lambda image: image[:, ::-1].copy()))
    assert mirrored['generation/color'] == 100 and mirrored['generation/position'] == pytest.approx(100 / 3, abs=10)
    assert mirrored['generation/both'] == mirrored['generation/position']
    asked = true_samples(60)
    for one in asked:
        one.set_field('blue' if one.gt_color == 'red' else 'red', 'gt_color')
    values = evaluate(asked)
    assert (values['generation/color'], values['generation/position'], values['generation/both']) == (0, 100, 0)


def test_nothing_of_the_palette_is_unreadable_and_wrong():
    values = evaluate([sample(np.full((24, 24, 3), grey)) for grey in (0.0, 0.25, 0.5)])
    assert values['generation/unreadable'] == 100 and values['generation/both'] == 0


def test_what_is_missing_is_named():
    with pytest.raises(KeyError, match="'palette'"):
        evaluate(true_samples(2), metainfo={})
    with pytest.raises(KeyError, match="ShapesGenerationMetric: .*'pred_image'"):
        evaluate([DataSample()])
    with pytest.raises(ValueError, match='no image'):
        ShapesGenerationMetric().compute_metrics([])
