"""One call for every batch augment: mixers as they are, and MMPretrain's own augments wrapped once."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .base import Mixer, MixResult


class AugmentMixer(Mixer):
    """A batch augment of MMPretrain as a mixer.

    Args:
        augment (Callable): ``(images, scores) -> (images, scores)`` that mixes pairs: Mixup, CutMix, ResizeMix.
    """

    takes_partner = False

    def __init__(self, augment: Callable) -> None:
        self.augment = augment

    def mix(
        self,
        images: Tensor,
        encoder: nn.Module | None = None,
        generator: torch.Generator | None = None,
        partner: Tensor | None = None,
    ) -> MixResult:
        """Mix, and read partner and ratio of each image from the mixed scores; there is no mask.

        The augment draws its partners itself, from the global generators; `encoder`, `generator` and `partner` are
        ignored.
        """
        # One-hot scores that name the images show which ones were mixed. CutMix and ResizeMix write into their input.
        mixed, weights = self.augment(images.clone(), torch.eye(len(images), device=images.device))
        ratio = weights.diagonal()
        other, found = (weights - torch.diag(ratio)).max(dim=1)
        itself = torch.arange(len(images), device=images.device)
        return MixResult(mixed, torch.where(other > 0, found, itself), ratio, clean=images)


def as_mixer(augment: Callable) -> Mixer:
    """A mixer as it is, any other batch augment wrapped in :class:`AugmentMixer`."""
    return augment if isinstance(augment, Mixer) else AugmentMixer(augment)


def mix_batch(augment: Callable, images: Tensor, encoder: nn.Module | None = None) -> MixResult:
    """Mix a batch of images with any batch augment.

    Args:
        augment (Callable): A :class:`Mixer`, or a batch augment of MMPretrain that mixes pairs.
        images (Tensor): [B, 3, H, W] normalised images, B >= 2. Not written to.
        encoder (nn.Module, optional): The model that scores, for a mixer that needs one. Defaults to None.

    Returns:
        MixResult: mask and saliency are None for augments of MMPretrain.
    """
    return as_mixer(augment).mix(images, encoder)
