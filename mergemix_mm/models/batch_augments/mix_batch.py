"""One call for every mixer: MergeMix with an encoder, and MMPretrain's batch augments as they are."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .base import MixResult
from .mergemix import MergeMix


def mix_batch(augment: Callable, images: Tensor, encoder: nn.Module | None = None) -> MixResult:
    """Mix a batch of images and learn partner and ratio of each.

    Args:
        augment (Callable): a `MergeMix`, or any batch augment ``(images, scores) -> (images, scores)`` that mixes
            pairs: Mixup, CutMix, ResizeMix.
        images (Tensor): [B, 3, H, W] normalised images, B >= 2. Not written to.
        encoder (nn.Module, optional): The model that scores for `MergeMix`.

    Returns:
        MixResult: mask and saliency are None for augments other than `MergeMix`.
    """
    if isinstance(augment, MergeMix):
        return augment.mix(images, encoder)
    # Scores that name the images show which ones were mixed, and how; CutMix and ResizeMix write into their input.
    mixed, weights = augment(images.clone(), torch.eye(len(images), device=images.device))
    ratio = weights.diagonal()
    other, partner = (weights - torch.diag(ratio)).max(dim=1)
    itself = torch.arange(len(images), device=images.device)
    return MixResult(mixed, torch.where(other > 0, partner, itself), ratio, clean=images)
