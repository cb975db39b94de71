"""Janus (https://arxiv.org/abs/2410.13848), image understanding: a padded square image, a SigLIP-like tower, an MLP."""

from torch import Tensor

from .base import Family
from .layout import mark_frames


class JanusFamily(Family):
    """``JanusForConditionalGeneration``; the parts that generate images belong to no part and stay frozen."""

    parts = dict(
        vision_tower=('model.vision_model',),
        projector=('model.aligner',),
        language_model=('model.language_model', 'lm_head'),
    )

    def modality(self, batch: dict) -> Tensor:
        return mark_frames(super().modality(batch))
