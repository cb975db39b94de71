"""Mixers whose label follows the attention of the mixed image: TransMix (arXiv 2111.09833), MixPro (arXiv 2304.12043).

The attention is that of the pass which is trained on, so there is no other one.
"""

import math
from dataclasses import replace

import torch
from mmpretrain.registry import BATCH_AUGMENTS
from torch import Tensor

from ...functional import (
    box_mask,
    cell_mask,
    mix_labels,
    mixed_attention_ratio,
    nearest_mask,
    progressive_ratio,
    random_centers,
)
from ...utils.numbers import check_number
from ..evaluation_mode import evaluation_mode
from ..vision_encoders import PatchScores
from .base import MixedPass, MixResult
from .drawn_masks import DrawnMaskMixer
from .mask_mixer import MaskMixer


@BATCH_AUGMENTS.register_module()
class TransMix(DrawnMaskMixer):
    """CutMix whose label is the share of attention that the mixed image gives to the image's own patches.

    The attention is that of the class token in the last layer, mean over the heads; a patch belongs to the image that
    its centre shows (TransMix, https://arxiv.org/abs/2111.09833). `MixupClassifier` only.

    Args:
        alpha (float): Parameter of lambda ~ Beta(alpha, alpha), > 0 and finite; the partner's box has the area
            1 - lambda. Defaults to 1.0.
        area_weight (float): Share of the area in the label, in [0, 1]. Defaults to 0.0, as in the paper; the authors'
            code has 0.5 (transmix.py).
        per_image (bool): Whether each image gets a box of its own instead of one for the batch. Defaults to False.

    Raises:
        ValueError: If an argument is out of its range.
    """

    reads_pass = True

    def __init__(self, alpha: float = 1.0, area_weight: float = 0.0, per_image: bool = False) -> None:
        check_number('TransMix: area_weight', area_weight, 'in [0, 1]', least=0, most=1)
        super().__init__(alpha=alpha, per_image=per_image)
        self.area_weight = area_weight

    def draw_pixels(
        self, count: int, size: tuple[int, int], device: torch.device, generator: torch.Generator | None
    ) -> Tensor:
        """CutMix' box, [N, H, W] bool."""
        share = self.draw_lambda(count, generator)
        return box_mask(share, random_centers(count, size, generator, device), size)

    def after_pass(self, result: MixResult, seen: MixedPass) -> tuple[MixResult, dict[str, Tensor]]:
        """The label of the attention, blended with that of the area."""
        ratio = torch.lerp(_attention(result, seen), result.ratio, self.area_weight)
        return replace(result, ratio=ratio), {}


@BATCH_AUGMENTS.register_module()
class MixPro(MaskMixer):
    """Show each image in random square cells, and trust the attention as far as the model predicts the label.

    ceil(lambda * cells) cells are the image's own, lambda ~ Beta(alpha, alpha). The share of its own label is
    s * attention + (1 - s) * area: the attention is that of :class:`TransMix`, and s is the cosine between the smoothed
    label of the area and the model's prediction for the mixed image (MixPro, https://arxiv.org/abs/2304.12043).
    `MixupClassifier` only, which logs the mean of s as ``trust``.

    Args:
        alpha (float): Parameter of the Beta distribution, > 0 and finite. Defaults to 1.0.
        cell_size (int, optional): Side of the cells in pixels, a multiple of the patches' side and smaller than the
            image; cells at the right and the lower border are smaller if the image is not a multiple of it. Defaults
            to None: a quarter of the shorter side, rounded up to a multiple of 16. For 224 pixels that is 64, four
            patches of 16; the authors' DeiT-T and DeiT-S have four patches of 14, DeiT-B eight.
        label_smooth_val (float): Smoothing of the label that is compared with the prediction, in [0, 1); to be that of
            the loss. Defaults to 0.1.
        per_image (bool): Whether each image gets a lambda of its own. Cells are drawn for each image in any case.
            Defaults to False.

    Raises:
        ValueError: If an argument is out of its range. In ``loss()``, if `cell_size` does not fit image or patches.
    """

    reads_pass = True

    def __init__(
        self,
        alpha: float = 1.0,
        cell_size: int | None = None,
        label_smooth_val: float = 0.1,
        per_image: bool = False,
    ) -> None:
        if cell_size is not None:
            allowed = 'an int >= 1, in pixels, or None for a quarter of the image'
            check_number('MixPro: cell_size', cell_size, allowed, least=1, integer=True)
        check_number('MixPro: label_smooth_val', label_smooth_val, 'in [0, 1)', least=0, below=1)
        super().__init__(alpha=alpha, per_image=per_image)
        self.cell_size = cell_size
        self.label_smooth_val = label_smooth_val

    def draw_mask(
        self, images: Tensor, partner: Tensor, scores: PatchScores | None, generator: torch.Generator | None
    ) -> tuple[Tensor, tuple[int, int]]:
        """Random cells, on the coarsest grid that shows them."""
        size = images.shape[-2:]
        cell = self._side(images)
        if cell >= max(size):
            raise ValueError(
                f'MixPro: cell_size={cell} must be smaller than the images of {size[0]} x {size[1]} pixels'
            )
        # One common measure of image and cells: cells at the border may be cut.
        unit = math.gcd(cell, *size)
        grid = size[0] // unit, size[1] // unit
        share = self.draw_lambda(len(images), generator)
        return cell_mask(share, grid, cell // unit, generator, images.device).flatten(1), grid

    @torch.compiler.disable  # Changes the mode of the head.
    def after_pass(self, result: MixResult, seen: MixedPass) -> tuple[MixResult, dict[str, Tensor]]:
        """The label of area and attention."""
        cell = self._side(result.images)
        patch = [side // count for side, count in zip(result.images.shape[-2:], seen.scores.grid, strict=True)]
        if any(cell % side for side in patch):
            raise ValueError(f'MixPro: cell_size={cell} must be a multiple of the patches of {patch[0]} x {patch[1]}')
        head, labels = seen.batch.classifier.head, seen.batch.labels
        # In eval mode: a norm in the head would count the batch twice.
        with evaluation_mode(head, labels.device.type):
            logits = head(seen.features)
        smooth = labels * (1 - self.label_smooth_val) + self.label_smooth_val / labels.size(1)
        area_labels = mix_labels(smooth, result.partner, result.ratio)
        ratio, trust = progressive_ratio(result.ratio, _attention(result, seen), area_labels, logits)
        return replace(result, ratio=ratio), {'trust': trust.mean()}

    def _side(self, images: Tensor) -> int:
        """The side of the cells for these images."""
        return self.cell_size or -(-min(images.shape[-2:]) // 64) * 16


def _attention(result: MixResult, seen: MixedPass) -> Tensor:
    """The share [B] of the mixed images' attention on their own patches."""
    assert result.mask is not None and result.grid is not None
    mask = nearest_mask(result.mask, result.grid, seen.scores.grid)
    return mixed_attention_ratio(seen.scores.saliency, mask)
