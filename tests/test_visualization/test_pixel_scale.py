"""Tests of the way back from normalised images to pixels."""

import numpy as np
import pytest
import tiny_vlms
import torch

from mergemix_mm.visualization import pixel_scale


def _pixels(images, mean, std):
    return [(image * std.view(-1, 1, 1) + mean.view(-1, 1, 1)).permute(1, 2, 0).numpy() for image in images]


@pytest.mark.parametrize('family', ['llava', 'paligemma', 'qwen2_5_vl'])
def test_a_processor_leads_back_to_the_pixels_it_was_given(family):
    from mergemix_mm.models.vlms import HFVisionLanguageModel

    image = tiny_vlms.random_image(28, 28, seed=0)
    batch = tiny_vlms.tiny_batch(family, [([image], 'Q', 'A')])
    canvases = HFVisionLanguageModel(config=tiny_vlms.tiny_config(family)).canvases(batch)[0]
    (found,) = _pixels(canvases, *pixel_scale(tiny_vlms.tiny_processor(family), canvases))
    np.testing.assert_allclose(found, np.asarray(image), atol=0.01)


@pytest.mark.parametrize('wrong', [None, 'scale'])
def test_without_a_processor_that_fits_values_are_stretched(wrong):
    processor = tiny_vlms.tiny_processor('llava') if wrong else None
    images = [torch.linspace(-3, 0, 48).view(3, 4, 4), torch.linspace(0, 5, 48).view(3, 4, 4)]
    first, second = _pixels(images, *pixel_scale(processor, images))
    assert first.min() == pytest.approx(0, abs=1e-3) and second.max() == pytest.approx(255, abs=1e-3)
    assert first.max() == second.min() == pytest.approx(255 * 3 / 8, abs=1e-3)


def test_steps_that_a_processor_leaves_out_are_not_undone():
    processor = tiny_vlms.tiny_processor('llava')
    images = [torch.tensor([0.0, 0.5]).repeat(3, 2, 1)]
    processor.image_processor.do_normalize = False
    assert _pixels(images, *pixel_scale(processor, images))[0].max() == pytest.approx(127.5)
    processor.image_processor.do_rescale = False
    assert _pixels(images, *pixel_scale(processor, images))[0].max() == pytest.approx(0.5)


def test_an_even_image_does_no_harm():
    images = [torch.full((3, 2, 2), 7.0)]
    assert np.isfinite(_pixels(images, *pixel_scale(None, images))[0]).all()
