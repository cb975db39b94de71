"""Saliency from pixels against the definitions, written out, and on images whose salient place is known."""

import pytest
import torch

from mergemix_mm.functional import fine_grained_saliency, gaussian_smooth, spectral_residual

MAPS = [spectral_residual, fine_grained_saliency]


def spot(height=64, width=64, at=(40, 20), size=6, background=0.2, value=1.0):
    """Noise of little strength with one bright square."""
    noise = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    images = background + 0.02 * noise
    images[..., at[0] : at[0] + size, at[1] : at[1] + size] = value
    return images


@pytest.mark.parametrize('saliency', MAPS)
@pytest.mark.parametrize('size', [(64, 64), (96, 128)])
def test_the_most_salient_pixel_lies_on_the_odd_square(saliency, size):
    found = saliency(spot(*size, at=(40, 20), size=8))
    assert found.shape == (1, *size) and found.dtype == torch.float32
    assert found.min() >= 0 and found.max() == 1
    row, col = divmod(int(found[0].argmax()), size[1])
    assert 38 <= row < 50 and 18 <= col < 30


def test_a_dark_square_is_as_salient_as_a_bright_one_in_fine_grained_saliency():
    images = spot()
    torch.testing.assert_close(fine_grained_saliency(1 - images), fine_grained_saliency(images), atol=1e-4, rtol=0)


@pytest.mark.parametrize('saliency', MAPS)
def test_brightness_of_all_pixels_changes_no_map(saliency):
    images = spot()
    torch.testing.assert_close(saliency(3 * images), saliency(images), atol=2e-3, rtol=0)


@pytest.mark.parametrize('saliency', MAPS)
def test_each_image_has_a_map_of_its_own(saliency):
    one, other = spot(), spot(at=(10, 44))
    both = saliency(torch.cat([one, other]))
    torch.testing.assert_close(both, torch.cat([saliency(one), saliency(other)]), atol=1e-5, rtol=0)


@pytest.mark.parametrize('saliency', MAPS)
@pytest.mark.parametrize('colour', [0.0, 0.7])
def test_an_image_of_one_colour_has_no_salient_place(saliency, colour):
    found = saliency(torch.full((2, 3, 32, 32), colour))
    assert found.isfinite().all()
    torch.testing.assert_close(found, found[:, :1, :1].expand_as(found), atol=1e-4, rtol=0)


def test_spectral_residual_equals_its_definition_on_single_frequencies():
    """R = log A - mean of 3 x 3 of log A, S = |F^-1(exp(R + iP))|^2, written out frequency by frequency."""
    torch.manual_seed(0)
    image = torch.rand(8, 8)
    spectrum = torch.fft.fft2(image)
    log, phase = spectrum.abs().log(), spectrum.angle()
    residual = torch.empty(8, 8)
    for row in range(8):
        for col in range(8):
            around = [log[(row + i) % 8, (col + j) % 8] for i in (-1, 0, 1) for j in (-1, 0, 1)]
            residual[row, col] = log[row, col] - sum(around) / 9
    expected = torch.fft.ifft2(torch.polar(residual.exp(), phase)).abs().square()
    found = spectral_residual(image[None, None], sigma=0)
    torch.testing.assert_close(found[0], expected / expected.max(), atol=1e-5, rtol=1e-4)


def test_fine_grained_saliency_equals_its_definition_on_single_pixels():
    """On and off differences to the mean of the other pixels of each square, written out pixel by pixel."""
    torch.manual_seed(0)
    image = torch.rand(20, 26)
    grey = gaussian_smooth(image[None], 1.0)[0].double()
    on, off = torch.zeros(20, 26).double(), torch.zeros(20, 26).double()
    for row in range(20):
        for col in range(26):
            for radius in (12, 24, 48, 28, 56, 112):
                square = grey[max(row - radius, 0) : row + radius + 1, max(col - radius, 0) : col + radius + 1]
                others = (square.sum() - grey[row, col]) / (square.numel() - 1)
                on[row, col] += max(grey[row, col] - others, 0)
                off[row, col] += max(others - grey[row, col], 0)
    expected = on / on.max() + off / off.max()
    found = fine_grained_saliency(image[None, None].expand(1, 3, -1, -1))
    torch.testing.assert_close(found[0].double(), expected / expected.max(), atol=1e-4, rtol=1e-3)


def test_smoothing_keeps_what_is_constant_and_spreads_a_point_as_a_gaussian():
    constant = torch.full((1, 9, 12), 0.3)
    torch.testing.assert_close(gaussian_smooth(constant, 2.0), constant)
    point = torch.zeros(1, 31, 31)
    point[0, 15, 15] = 1
    spread = gaussian_smooth(point, 2.0)[0]
    assert float(spread[15, 17] / spread[15, 15]) == pytest.approx(2.718281828**-0.5, rel=1e-5)


@pytest.mark.parametrize('saliency', MAPS)
def test_autocast_and_half_precision_change_maps_by_their_rounding_only(saliency):
    images = spot()
    expected = saliency(images)
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(saliency(images), expected)
    assert saliency(images.bfloat16()).dtype == torch.float32
