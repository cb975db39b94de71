"""Saliency of the pixels for a classifier: the gradient of its loss on clean images, for mixers that need it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..evaluation_mode import evaluation_mode
from ..vision_encoders import PatchScores, sharded_units
from .base import TrainingBatch


@dataclass
class PixelScores(PatchScores):
    """Saliency of each pixel, L' = H * W.

    Args:
        pixel_scale (Tensor, optional): [3], which normalised images are multiplied by so that their pixels have a range
            of length 1. Defaults to None: unknown.
    """

    pixel_scale: Tensor | None = None


def pixel_scores(saliency: Tensor, pixel_scale: Tensor | None = None) -> PixelScores:
    """Scores of pixels from maps [B, H, W], >= 0."""
    height, width = saliency.shape[1:]
    return PixelScores.unmerged(saliency.flatten(1), (height, width), pixel_scale=pixel_scale)


def input_gradient(batch: TrainingBatch) -> PixelScores:
    """The L2 norm over the channels of the gradient of the head's loss, for each pixel of the clean images.

    It costs a forward and a backward pass to the pixels. No parameter gets a gradient, and the classifier is left as it
    was: it runs in eval mode, so that dropout and drop path draw nothing and batch norms count the batch once only.

    Args:
        batch (TrainingBatch): The classifier and its batch.

    Returns:
        PixelScores: without gradient, with the scale of the classifier's normalisation.

    Raises:
        RuntimeError: If FSDP shards parts of the classifier by themselves.
    """
    classifier, images = batch.classifier, batch.images
    if any(sharded_units(part) for part in classifier.children()):
        # It takes this backward for that of the step, and shards all weights again before the step's own pass.
        raise RuntimeError(
            'FSDP shards parts of the classifier by themselves, and saliency by gradients (PuzzleMix, '
            "GuidedMix(source='gradient')) needs a backward pass within the step: shard the classifier as one unit, "
            'with no part of it in strategy.units, or train with DDP'
        )
    with evaluation_mode(classifier, images.device.type), torch.enable_grad():
        pixels = images.detach().requires_grad_()
        losses = classifier.head.loss(classifier.extract_feat(pixels), batch.data_samples)
        # The loss is a mean over the batch: its gradient for one image would be too small for half precision.
        loss = len(images) * sum(value for name, value in losses.items() if 'loss' in name)
        (gradient,) = torch.autograd.grad(loss, pixels)
    saliency = gradient.float().nan_to_num(0, 0, 0).norm(dim=1)
    scale = images.new_ones(images.size(1), dtype=torch.float32)
    if getattr(classifier.data_preprocessor, '_enable_normalize', False):
        scale = classifier.data_preprocessor.std.to(scale).flatten()
    return pixel_scores(saliency, scale / 255)
