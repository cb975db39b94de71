"""Saliency of an image from its pixels alone, without a model.

Two maps: the spectral residual (Hou and Zhang, CVPR 2007) and fine-grained static saliency (Montabone and Soto, Image
and Vision Computing 28(3), 2010). Both are unchanged where all pixels are multiplied by one positive number, and the
second one also where one number is added to all, so that normalised images serve. Shapes: B batch, H x W pixels.
"""

import torch
from torch import Tensor

from .resize import resize

# Red, green and blue in the luma of ITU-R BT.601.
_LUMA = (0.299, 0.587, 0.114)
# Half sides of the squares around a pixel, in pixels.
_SURROUNDS = (12, 24, 48, 28, 56, 112)


def spectral_residual(
    images: Tensor, side: int = 64, sigma: float = 8.0, radius: int | None = None, power: float = 2.0
) -> Tensor:
    """What the spectrum of an image has beyond its own smooth course: the spectral residual (Hou and Zhang, 2007).

    With the amplitude A and the phase P of the spectrum of the image in grey, and a mean h over 3 x 3 frequencies:
    ``R = log A - h * log A``, and ``S = g * |F^-1(exp(R + i P))|^power``, where g is a Gaussian.

    Args:
        images (Tensor): [B, 3, H, W] in the order red, green, blue, or [B, 1, H, W] in grey; any floating dtype.
        side (int): The scale of what is salient: images are made smaller until the longer side has this many pixels.
            Images that are smaller stay as they are. Defaults to 64, the paper's.
        sigma (float): Standard deviation of g in pixels of the smaller image; 0 leaves g out. Defaults to 8.0, the
            paper's.
        radius (int, optional): See :func:`gaussian_smooth`. Defaults to None.
        power (float): Defaults to 2.0, the paper's; GuidedMixup takes 1.

    Returns:
        Tensor: [B, H, W] float32, >= 0, with maximum 1; all 0 for black images.
    """
    grey = _grey(images)
    size = [max(round(length * min(side / max(grey.shape[-2:]), 1)), 1) for length in grey.shape[-2:]]
    spectrum = torch.fft.fft2(resize(grey[:, None], size)[:, 0])
    # A frequency that the image lacks has no phase, and stays out below.
    amplitude = spectrum.abs().clamp(min=1e-6)
    log = amplitude.log()
    # Spectra are periodic, so each frequency has eight neighbours.
    steps = (-1, 0, 1)
    mean = torch.stack([log.roll((down, across), dims=(1, 2)) for down in steps for across in steps]).mean(dim=0)
    found = torch.fft.ifft2(spectrum / amplitude * (log - mean).exp()).abs().pow(power)
    if sigma:
        found = gaussian_smooth(found, sigma, radius)
    return _to_peak_one(resize(found[:, None], images.shape[-2:])[:, 0].clamp(min=0))


def fine_grained_saliency(images: Tensor) -> Tensor:
    """Differences between each pixel and the squares around it, at full resolution (Montabone and Soto, 2010).

    For each of six squares, the pixel counts as *on* by how much it is brighter than the mean of the other pixels, and
    as *off* by how much it is darker. The sum of the six *on* maps and that of the six *off* maps are each divided by
    their maximum and added.

    The half sides of the squares (12, 24, 48, 28, 56 and 112 pixels) and the order of the steps are those of OpenCV
    (opencv_contrib, ``modules/saliency/src/staticSaliencyFineGrained.cpp``). That file rounds each map to 8 bits, blurs
    the image twice with 3 x 3 pixels first, and has squares of an even side; here nothing is rounded, the blur is one
    Gaussian of the same variance, and the squares are centred. Squares end at the border of the image.

    Args:
        images (Tensor): [B, 3, H, W] in the order red, green, blue, or [B, 1, H, W] in grey; any floating dtype.

    Returns:
        Tensor: [B, H, W] float32, >= 0, with maximum 1; all 0 for images of one colour.
    """
    # OpenCV's kernel of 3 pixels has weights 1/4, 1/2, 1/4, of variance 1/2; twice that is 1.
    grey = gaussian_smooth(_grey(images), 1.0)
    on, off = torch.zeros_like(grey), torch.zeros_like(grey)
    for radius in _SURROUNDS:
        down, across = (_within(length, radius, grey.device) for length in grey.shape[-2:])
        count = down.sum(dim=1)[:, None] * across.sum(dim=1)
        others = (_along_both(grey, down, across) - grey) / (count - 1).clamp(min=1)
        on += (grey - others).clamp(min=0)
        off += (others - grey).clamp(min=0)
    # Below the rounding of the sums over a square, a difference says nothing.
    least = 1e-5 * grey.abs().amax(dim=(1, 2), keepdim=True)
    on, off = (torch.where(x > least, x, 0) for x in (on, off))
    return _to_peak_one(_to_peak_one(on) + _to_peak_one(off))


def gaussian_smooth(maps: Tensor, sigma: float, radius: int | None = None) -> Tensor:
    """Gaussian mean of maps [B, H, W], with weights that sum to 1 at the border as well.

    Args:
        maps (Tensor): [B, H, W], any floating dtype.
        sigma (float): Standard deviation in pixels, > 0.
        radius (int, optional): Leave pixels out that are further away along rows or columns. A radius that is not
            several times sigma makes the Gaussian narrower. Defaults to None: all pixels count.

    Returns:
        Tensor: [B, H, W] float32.
    """
    weights = []
    for length in maps.shape[-2:]:
        place = torch.arange(length, device=maps.device, dtype=torch.float32)
        row = (-0.5 * ((place[:, None] - place) / sigma).square()).exp()
        if radius is not None:
            row = row * _within(length, radius, maps.device)
        weights.append(row / row.sum(dim=1, keepdim=True))
    return _along_both(maps.float(), *weights)


def _grey(images: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H, W] float32."""
    images = images.float()
    if images.size(1) != 3:
        return images.mean(dim=1)
    return (images * images.new_tensor(_LUMA)[:, None, None]).sum(dim=1)


def _within(length: int, radius: int, device: torch.device) -> Tensor:
    """[length, length], 1 where two places are at most `radius` apart, else 0."""
    place = torch.arange(length, device=device)
    return ((place[:, None] - place).abs() <= radius).float()


def _along_both(maps: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Weighted sums over rows and columns, which matrix products calculate in an order that does not vary."""
    with torch.autocast(maps.device.type, enabled=False):  # It would multiply in half precision.
        return down @ maps @ across.T


def _to_peak_one(maps: Tensor) -> Tensor:
    return maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
