"""Losers for mixed SimPO (https://arxiv.org/abs/2510.23479): an image without its salient region, or another image."""

import math

from mmpretrain.registry import BATCH_AUGMENTS
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from ...functional import derangement
from ...utils.numbers import check_number
from .mergemix import MergeMix


@BATCH_AUGMENTS.register_module()
class SalientBlur(MergeMix):
    """Blur the most salient patches of each image; the least salient p = floor(lambda * L') stay sharp.

    Needs no partner: the ratio is the share of the image's own attention (or area) that stays sharp.

    Args:
        sigma (float): Standard deviation of the Gaussian as a share of the image's shorter side, > 0. Defaults to 0.05.
        **kwargs: Those of :class:`MergeMix`; ``mask`` defaults to ``'inverse'``.

    Raises:
        ValueError: if an argument is out of its range.
    """

    needs_partner = False

    def __init__(self, sigma: float = 0.05, **kwargs) -> None:
        super().__init__(**{'mask': 'inverse', **kwargs})
        check_number('SalientBlur: sigma', sigma, '> 0 and finite', above=0)
        self.sigma = sigma

    def fill(self, images: Tensor, partners: Tensor) -> Tensor:
        """The images [B, 3, H, W], blurred; a kernel of three standard deviations to each side."""
        shorter = min(images.shape[-2:])
        sigma = self.sigma * shorter
        radius = min(math.ceil(3 * sigma), shorter - 1)
        return gaussian_blur(images, [2 * radius + 1] * 2, [sigma] * 2)


@BATCH_AUGMENTS.register_module()
class SwapImages:
    """Give each image, and its label with it, to another sample: a mix that keeps nothing, with ratio 0."""

    def __call__(self, inputs: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Swap as MMPretrain's batch augments mix.

        Args:
            inputs (Tensor): [B, 3, H, W] images.
            scores (Tensor): [B, num_classes] one-hot or soft labels.

        Returns:
            tuple: images and labels in another order; a batch of one comes back as it is.
        """
        if len(inputs) < 2:
            return inputs, scores.float()
        partner = derangement(len(inputs), device=inputs.device)
        return inputs[partner], scores[partner].float()
