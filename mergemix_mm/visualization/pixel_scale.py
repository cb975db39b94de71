"""How images that a processor of transformers normalised come back to the scale of pixels."""

from collections.abc import Sequence

import torch
from torch import Tensor

TOLERANCE = 25  # Resizing overshoots at edges.


def pixel_scale(processor, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation as `draw_mixed_samples` takes them: pixels in 0..255 are ``image * std + mean``.

    Args:
        processor: A processor of transformers, whose image processor says how it rescales and normalises. With None,
            or where its numbers would lead out of 0..255, the values of the images are stretched to this scale.
        images (Sequence[Tensor]): Normalised images [3, H, W], at least one.

    Returns:
        tuple[Tensor, Tensor]: Each [3] or [1] float32.
    """
    lowest = torch.stack([image.detach().float().amin((1, 2)).cpu() for image in images]).amin(0)
    highest = torch.stack([image.detach().float().amax((1, 2)).cpu() for image in images]).amax(0)
    image_processor = getattr(processor, 'image_processor', None)
    if image_processor is not None:
        mean, std = _of_processor(image_processor)
        if (lowest * std + mean).min() >= -TOLERANCE and (highest * std + mean).max() <= 255 + TOLERANCE:
            return mean, std
    std = 255 / (highest.max() - lowest.min()).clamp(min=1e-6).reshape(1)
    return -lowest.min() * std, std


def _of_processor(image_processor) -> tuple[Tensor, Tensor]:
    mean, std = torch.zeros(1), torch.ones(1)
    if getattr(image_processor, 'do_normalize', True):
        mean = torch.tensor(image_processor.image_mean, dtype=torch.float32).flatten()
        std = torch.tensor(image_processor.image_std, dtype=torch.float32).flatten()
    factor = image_processor.rescale_factor if getattr(image_processor, 'do_rescale', True) else 1
    return mean / factor, std / factor
