"""Losers for mixed SimPO (https://arxiv.org/abs/2510.23479): an image without its salient region, or another image."""

import math

import torch
from mmpretrain.registry import BATCH_AUGMENTS
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from ...functional import derangement
from ...utils.numbers import check_number
from .base import Mixer, MixResult
from .mergemix import MergeMix


@BATCH_AUGMENTS.register_module()
class SalientBlur(MergeMix):
    """Blur the most salient patches of each image; the least salient p = floor(lambda * L') stay sharp.

    It needs no partner: the ratio is the share of the image's own attention (or area) that stays sharp.

    Args:
        sigma (float): Standard deviation of the Gaussian as a share of the image's shorter side, > 0. Defaults to 0.05.
        **kwargs: Those of :class:`MergeMix`; ``mask`` defaults to ``'inverse'``.

    Raises:
        ValueError: If an argument is out of its range.
    """

    needs_partner = False

    def __init__(self, sigma: float = 0.05, **kwargs) -> None:
        super().__init__(**{'mask': 'inverse', **kwargs})
        check_number('SalientBlur: sigma', sigma, '> 0 and finite', above=0)
        self.sigma = sigma

    def fill(self, images: Tensor, partners: Tensor) -> Tensor:
        """The images [B, 3, H, W], blurred with a kernel of three standard deviations to each side."""
        shorter = min(images.shape[-2:])
        sigma = self.sigma * shorter
        # Reflection pads by less than the image's side.
        radius = min(math.ceil(3 * sigma), shorter - 1)
        return gaussian_blur(images, [2 * radius + 1] * 2, [sigma] * 2)


@BATCH_AUGMENTS.register_module()
class SwapImages(Mixer):
    """Replace each image, and its label with it, by another one of the batch: a mix with ratio 0."""

    def mix(
        self,
        images: Tensor,
        encoder: nn.Module | None = None,
        generator: torch.Generator | None = None,
        partner: Tensor | None = None,
    ) -> MixResult:
        """Swap the images; see :meth:`Mixer.mix`. Nothing is scored, so `encoder` is ignored."""
        if partner is None:
            partner = derangement(len(images), generator, images.device)
        return MixResult(images[partner], partner, torch.zeros(len(images), device=images.device), clean=images)
