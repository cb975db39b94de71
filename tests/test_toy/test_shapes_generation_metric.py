"""Tests of ShapesGenerationMetric: it reads true images, and nothing from noise."""

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmpretrain.structures import DataSample

from mergemix_mm.datasets import ShapesGenerationDataset
from mergemix_mm.evaluation import ShapesGenerationMetric


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
    with pytest.raises(KeyError, match="no 'palette'"):
        evaluate(true_samples(2), metainfo={})
    with pytest.raises(KeyError, match="ShapesGenerationMetric: a data sample has no 'pred_image'"):
        evaluate([DataSample()])
    with pytest.raises(ValueError, match='there is no image to evaluate'):
        ShapesGenerationMetric().compute_metrics([])
