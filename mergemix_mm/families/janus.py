"""Janus (https://arxiv.org/abs/2410.13848): a padded square image, a SigLIP-like tower, an MLP."""

from torch import Tensor

from .base import Family
from .layout import mark_frames


class JanusFamily(Family):
    """``JanusForConditionalGeneration``; its part ``generation`` is read by `JanusModel` alone."""

    parts = dict(
        vision_tower=('model.vision_model',),
        projector=('model.aligner',),
        language_model=('model.language_model', 'lm_head'),
        # Its VQ model belongs to no part: it stays frozen.
        generation=('model.generation_embeddings', 'model.generation_aligner', 'model.generation_head'),
    )

    def modality(self, batch: dict) -> Tensor:
        return mark_frames(super().modality(batch))
