"""The page of mixed samples, and what is made of batches and processors for it."""

from unittest import mock

import numpy as np
import pytest
import tiny_vlms
import torch
from matplotlib.axes import Axes
from matplotlib.offsetbox import TextArea
from mmpretrain.structures import DataSample

from mergemix_mm.models.batch_augments import MixResult
from mergemix_mm.models.tuners import CanvasMix
from mergemix_mm.models.vlms import HFVisionLanguageModel
from mergemix_mm.visualization import draw_mixed_samples, labels_of, pixel_scale

MEAN, STD = [120.0, 110.0, 100.0], [60.0, 50.0, 40.0]


def _result(batch=3, size=(16, 24), grid=(4, 6), masked=True, clean=True, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, 3, *size), generator=generator)
    normalised = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    partner = torch.arange(batch).roll(-1)
    result = MixResult(
        images=(normalised * 0.75 + normalised[partner] * 0.25).to(dtype),
        partner=partner,
        ratio=torch.full((batch,), 0.75),
        clean=normalised.to(dtype) if clean else None,
    )
    if masked:
        result.mask = torch.rand(batch, grid[0] * grid[1], generator=generator) < 0.75
        result.saliency = torch.rand(batch, grid[0] * grid[1], generator=generator).to(dtype)
        result.grid = grid
    return result, pixels


def _draw(*args, **kwargs):
    """Draw, and hand back the arrays shown, the headings and the captions beside the page."""
    shown, headings, captions = [], [], []
    imshow, set_title, text = Axes.imshow, Axes.set_title, TextArea.__init__

    def record_imshow(self, array, **options):
        shown.append(np.asarray(array))
        return imshow(self, array, **options)

    def record_title(self, label, **options):
        headings.append(label)
        return set_title(self, label, **options)

    def record_text(self, string, **options):
        captions.append(string)
        return text(self, string, **options)

    with (
        mock.patch.object(Axes, 'imshow', record_imshow),
        mock.patch.object(Axes, 'set_title', record_title),
        mock.patch.object(TextArea, '__init__', record_text),
    ):
        page = draw_mixed_samples(*args, **kwargs)
    return page, shown, headings, captions


def test_a_row_shows_clean_partner_saliency_mask_and_mixed():
    result, pixels = _result()
    page, shown, headings, captions = _draw(result, MEAN, STD, [0, 2, 1], ['cat', 'dog', 'owl'], max_rows=1)
    assert headings == ['image', 'partner', 'saliency', 'mask', 'mixed']
    own = round(float(result.mask[0].float().mean()) * 100)
    assert captions == ['cat', 'owl', f'{own}% own', '0.75 cat', ' + ', '0.25 owl']
    clean, partner, _, saliency, mask, mixed = shown
    np.testing.assert_array_equal(clean, pixels[0].permute(1, 2, 0))
    np.testing.assert_array_equal(partner, pixels[1].permute(1, 2, 0))
    np.testing.assert_array_equal(mask, result.mask[0].view(4, 6))
    expected = 0.75 * pixels[0].float() + 0.25 * pixels[1].float()
    assert np.abs(mixed.astype(float) - expected.permute(1, 2, 0).numpy()).max() <= 0.51
    assert saliency.shape == (16, 24)
    assert np.corrcoef(saliency.reshape(4, 4, 6, 4).mean((1, 3)).ravel(), result.saliency[0])[0, 1] > 0.9
    assert page.dtype == np.uint8 and page.shape[2] == 3


@pytest.mark.parametrize(
    'options, headings',
    [
        (dict(masked=False), ['image', 'partner', 'mixed']),  # As Mixup's.
        (dict(clean=False), ['saliency', 'mask', 'mixed']),
    ],
)
def test_columns_that_no_row_can_fill_are_left_out(options, headings):
    assert _draw(_result(**options)[0], MEAN, STD)[2] == headings


def test_several_batches_share_the_page():
    first, second = _result(batch=2)[0], _result(batch=5, masked=False)[0]
    second.ratio = torch.full((5,), 0.5)
    _, shown, headings, captions = _draw([first, second], MEAN, STD, [[0, 1], None], ['cat', 'dog'], max_rows=3)
    assert headings == ['image', 'partner', 'saliency', 'mask', 'mixed']
    assert captions[-5:] == ['own', 'partner', '0.50 own', ' + ', '0.50 partner']
    assert len(shown) == 2 * 6 + 3


def test_batches_have_titles_and_share_the_rows_evenly_and_labels_need_not_sum_to_one():
    first, second = _result()[0], _result()[0]
    second.partner_ratio = torch.full_like(second.ratio, 0.1)
    _, shown, _, captions = _draw([first, second], MEAN, STD, max_rows=2, titles=['FMix', 'TokenMix'])
    assert len(shown) == 2 * 6  # The saliency lies over the image.
    assert captions[-1] == '0.10 partner' and captions[5] == '0.25 partner'


def test_images_on_the_scale_of_pixels_need_no_mean_and_std():
    result, pixels = _result()
    result.clean = pixels.float()
    np.testing.assert_array_equal(_draw(result)[1][0], pixels[0].permute(1, 2, 0))


def test_bgr_images_are_shown_in_rgb():
    result, pixels = _result()
    assert (_draw(result, MEAN, STD, channel_order='bgr')[1][0] == pixels[0].flip(0).permute(1, 2, 0).numpy()).all()


def test_half_precision_and_gradients_do_no_harm():
    result, pixels = _result(dtype=torch.bfloat16)
    result.images.requires_grad_()
    clean = _draw(result, torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1))[1][0]
    assert np.abs(clean.astype(int) - pixels[0].permute(1, 2, 0).numpy()).max() <= 2


def test_numbers_are_quoted_long_names_cut_and_several_labels_joined():
    result, _ = _result(batch=2, masked=False)
    classes = ['7', 'great white shark, man-eater', 'cat', 'owl']
    assert _draw(result, MEAN, STD, [0, torch.tensor([2, 3])], classes)[3][:2] == ['“7”', 'cat, owl']
    assert _draw(result, MEAN, STD, [1, []], classes)[3][:2] == ['great white shark…', 'none']


def _canvases(sizes, mixed):
    """A CanvasMix on the scale of pixels; each image takes half of the next one, whatever its size."""
    generator = torch.Generator().manual_seed(0)
    clean = [torch.randint(0, 256, (3, *size), generator=generator).float() for size in sizes]
    number = len(sizes)
    return CanvasMix(
        images=[0.5 * image for image in clean],
        clean=clean,
        partner=torch.arange(number).roll(-1),
        ratio=torch.full((number,), 0.5),
        owner=torch.arange(number),
        mixed=torch.tensor(mixed),
        mask=torch.rand(number, 6, generator=generator) < 0.5,
        saliency=torch.rand(number, 6, generator=generator),
        grid=(2, 3),
    )


def test_canvases_of_several_sizes_keep_their_shapes():
    result = _canvases([(16, 24), (32, 16)], [True, True])
    _, shown, headings, captions = _draw(result, labels=['#1', '#2'])
    assert headings == ['image', 'partner', 'saliency', 'mask', 'mixed']
    # Of each row: clean, partner, clean in grey, saliency, mask, mixed.
    assert [array.shape[:2] for array in shown[:6]] == [(16, 24), (32, 16), (16, 24), (16, 24), (2, 3), (16, 24)]
    assert [array.shape[:2] for array in shown[6:]] == [(32, 16), (16, 24), (32, 16), (32, 16), (2, 3), (32, 16)]
    np.testing.assert_array_equal(shown[11], result.images[1].round().byte().permute(1, 2, 0))
    assert captions[:2] == ['#1', '#2'] and '0.50 #2' in captions


def test_scores_of_each_image_at_its_own_size_are_drawn_on_its_own_grid():
    result = _canvases([(16, 24), (32, 16)], [True, True])
    result.mask, result.grid = [torch.arange(6) < 2, torch.arange(8) < 3], [(2, 3), (4, 2)]
    result.saliency = [torch.rand(6), torch.rand(8)]
    _, shown, _, captions = _draw(result)
    assert [array.shape[:2] for array in shown[3:5]] == [(16, 24), (2, 3)]
    assert [array.shape[:2] for array in shown[9:11]] == [(32, 16), (4, 2)]
    assert shown[10].sum() == 3 and '38% own' in captions


def test_an_image_that_stayed_clean_is_shown_by_itself():
    _, shown, headings, captions = _draw(_canvases([(16, 16)] * 2, [True, False]))
    assert len(headings) == 5 and len(shown) == 6 + 1 and captions[-1] == 'own'
    assert _draw(_canvases([(16, 16)] * 2, [False, False]))[2] == ['image']


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(channel_order='gbr'), "channel_order='gbr'"),
        (dict(max_rows=0), 'max_rows=0'),
        (dict(labels=[1, 2]), '2 labels for 3 images'),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        draw_mixed_samples(_result()[0], **kwargs)


def test_no_batch_at_all_is_refused():
    with pytest.raises(ValueError, match='MixResult'):
        draw_mixed_samples([])


def test_labels_come_from_classes_or_scores_or_not_at_all():
    multi = DataSample().set_gt_score(torch.tensor([0.0, 1.0, 1.0]))
    batch = dict(data_samples=[DataSample().set_gt_label(2), multi])
    assert [label.tolist() for label in labels_of(batch, 2)] == [[2], [1, 2]]
    for other, size in ((batch, 3), (dict(data_samples=[DataSample()]), 1), (dict(inputs=1), 1), (None, 1)):
        assert labels_of(other, size) is None


def _pixels(images, processor):
    mean, std = (values.view(-1, 1, 1) for values in pixel_scale(processor, images))
    return [(image * std + mean).permute(1, 2, 0).numpy() for image in images]


@pytest.mark.parametrize('family', ['llava', 'paligemma', 'qwen2_5_vl'])
def test_a_processor_leads_back_to_the_pixels_it_was_given(family):
    image = tiny_vlms.random_image(28, 28, seed=0)
    batch = tiny_vlms.tiny_batch(family, [([image], 'Q', 'A')])
    canvases = HFVisionLanguageModel(config=tiny_vlms.tiny_config(family)).canvases(batch)[0]
    (found,) = _pixels(canvases, tiny_vlms.tiny_processor(family))
    np.testing.assert_allclose(found, np.asarray(image), atol=0.01)


@pytest.mark.parametrize('wrong', [None, 'scale'])
def test_without_a_processor_that_fits_values_are_stretched(wrong):
    processor = tiny_vlms.tiny_processor('llava') if wrong else None
    images = [torch.linspace(-3, 0, 48).view(3, 4, 4), torch.linspace(0, 5, 48).view(3, 4, 4)]
    first, second = _pixels(images, processor)
    assert first.min() == pytest.approx(0, abs=1e-3) and second.max() == pytest.approx(255, abs=1e-3)
    assert first.max() == second.min() == pytest.approx(255 * 3 / 8, abs=1e-3)
    assert np.isfinite(_pixels([torch.full((3, 2, 2), 7.0)], None)[0]).all()


def test_steps_that_a_processor_leaves_out_are_not_undone():
    processor = tiny_vlms.tiny_processor('llava')
    images = [torch.tensor([0.0, 0.5]).repeat(3, 2, 1)]
    processor.image_processor.do_normalize = False
    assert _pixels(images, processor)[0].max() == pytest.approx(127.5)
    processor.image_processor.do_rescale = False
    assert _pixels(images, processor)[0].max() == pytest.approx(0.5)
