"""Mixers for the study of labels: a box or a mask of MergeMix, and any of five labels for the same mixed image."""

import torch
import torch.nn.functional as F
from mmpretrain.registry import BATCH_AUGMENTS
from torch import Tensor

from mergemix_mm.functional import derangement
from mergemix_mm.models.batch_augments import MaskMixer, MergeMix, OACutMix
from mergemix_mm.models.vision_encoders import PatchScores

from .digit_mixes import visible_ink

LABELS = ('area', 'attention', 'batch mean', 'shuffled', 'visible')


class LabelledMixer(MaskMixer):
    """One of five labels for the masks of a subclass. All labels of a mask see the same partners and lambdas.

    - ``'area'``: the share of the pixels.
    - ``'attention'``: the share of the visible attention.
    - ``'batch mean'``: its mean over the batch, for every image: what the MergeMix release trains on in effect.
    - ``'shuffled'``: the shares of the visible attention of other images of the batch. Labels are as soft and as varied
      as with ``'attention'``, but say nothing about the image.
    - ``'visible'``: the share of the visible ink, which is the truth; the area where a mix shows no ink.

    Args:
        label (str): One of these. Defaults to ``'attention'``.
        **kwargs: Those of the mixer, but for ``ratio``.
    """

    def __init__(self, label: str = 'attention', **kwargs) -> None:
        if label not in LABELS:
            raise ValueError(f'{type(self).__name__}: label={label!r} must be one of {LABELS}')
        super().__init__(ratio='area' if label in ('area', 'visible') else 'attention', **kwargs)
        self.label = label
        # The ink of the batch [B, H, W] bool, which the training loop shows before each step.
        self.ink: Tensor | None = None
        # |label - visible share|, the mean of each mixed batch.
        self.errors: list[float] = []
        self._shuffles = torch.Generator().manual_seed(0)  # Its own, so that the other draws stay the same.

    def show_ink(self, masks: Tensor) -> None:
        """Take the masks of the next batch, [B, H, W] bool."""
        self.ink = masks

    def draw_ratio(
        self,
        scores: PatchScores | None,
        partner: Tensor,
        mask: Tensor,
        grid: tuple[int, int],
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The label of each image [B]; also notes how far it is from the share of the visible ink."""
        ratio = super().draw_ratio(scores, partner, mask, grid, generator)
        visible = self._visible_share(partner, mask, grid)
        if self.label == 'batch mean':
            ratio = ratio.mean().expand(len(ratio))
        elif self.label == 'shuffled':
            ratio = ratio[derangement(len(ratio), self._shuffles)]
        elif self.label == 'visible':
            ratio = torch.where(visible.isnan(), ratio, visible)
        self.errors.append(float((ratio - visible).abs().nanmean()))
        return ratio

    def _visible_share(self, partner: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
        """The own ink's share of the visible ink [B], NaN where none is visible."""
        pixels = F.interpolate(mask.float().unflatten(1, grid)[:, None], self.ink.shape[1:], mode='nearest')[:, 0] > 0.5
        own, other = visible_ink(self.ink, self.ink[partner], pixels)
        return own / (own + other)


@BATCH_AUGMENTS.register_module(force=True)
class LabelledCutMix(LabelledMixer, OACutMix):
    """The box of CutMix, one for the batch, with any of five labels."""


@BATCH_AUGMENTS.register_module(force=True)
class LabelledMergeMix(LabelledMixer, MergeMix):
    """The mask of MergeMix with any of five labels."""
