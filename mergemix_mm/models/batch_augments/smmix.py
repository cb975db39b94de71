"""SMMix: the salient square of one image over the least salient one of another (https://arxiv.org/abs/2212.12977)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mmpretrain.registry import BATCH_AUGMENTS
from torch import Tensor, nn

from ...functional import (
    area_ratio,
    attention_ratio,
    block_mask,
    draw_side,
    extreme_blocks,
    region_means,
    shift_patches,
)
from ...utils.numbers import check_number
from ..evaluation_mode import evaluation_mode
from ..vision_encoders import PatchScores, recorded
from .base import MixedPass, MixResult, TrainingBatch
from .mask_mixer import MaskMixer


@dataclass
class _CleanScores(PatchScores):
    """Scores of the clean images, and their logits [B, num_classes]."""

    logits: Tensor | None = None


@dataclass
class _Mix(MixResult):
    """A mix that remembers the logits [B, num_classes] of the clean images."""

    logits: Tensor | None = None


@BATCH_AUGMENTS.register_module()
class SMMix(MaskMixer):
    """Put the partner's most attended square of patches onto the least attended one of each image.

    Attention is what a patch receives from all patches in the last layer, in a pass over the clean images in eval mode
    and without gradient. Two losses are added to that of the label by area:

    - ``region_loss``: the head classifies the mean token of the own region as the own class and that of the square as
      the partner's, 1/2 (own + partner). The authors' code has a linear layer of its own for it, and reports that the
      shared head, which is used here, is as good.
    - ``consistency_loss``: KL(softmax of both clean images' logits, mixed as the labels || prediction of the mix).

    With both weights 0, only the images differ from CutMix; then it works outside of `MixupClassifier` as well.

    Args:
        min_side (float): Smallest side of the square as a share of the shorter side of the patch grid, rounded down to
            patches but at least one, in (0, 1). Defaults to 0.25 (3 of 14).
        max_side (float): Largest side, likewise, in [min_side, 1). Defaults to 0.75 (10 of 14).
        region_weight (float): Weight of ``region_loss``, >= 0. Defaults to 1.0.
        consistency_weight (float): Weight of ``consistency_loss``, >= 0. Defaults to 1.0.
        ratio (str): ``'area'`` as in the paper, or ``'attention'``, see :class:`MaskMixer`. Defaults to ``'area'``.
        encoder (nn.Module | dict, optional): A frozen encoder that scores in place of the backbone, see
            :class:`MaskMixer`. Defaults to None.

    Raises:
        ValueError: If an argument is out of its range.
    """

    mask_needs_scores = True
    resizes = False
    scored_by_clean_pass = False

    def __init__(
        self,
        min_side: float = 0.25,
        max_side: float = 0.75,
        region_weight: float = 1.0,
        consistency_weight: float = 1.0,
        ratio: str = 'area',
        encoder: nn.Module | dict | None = None,
    ) -> None:
        check_number('SMMix: min_side', min_side, 'in (0, 1)', above=0, below=1)
        check_number('SMMix: max_side', max_side, f'in [min_side={min_side}, 1)', least=min_side, below=1)
        check_number('SMMix: region_weight', region_weight, '>= 0 and finite', least=0)
        check_number('SMMix: consistency_weight', consistency_weight, '>= 0 and finite', least=0)
        super().__init__(ratio=ratio, num_merge=0, encoder=encoder, saliency='received')
        self.layer = -1  # The last one.
        self.min_side, self.max_side = min_side, max_side
        self.region_weight, self.consistency_weight = region_weight, consistency_weight
        self.needs_classifier = consistency_weight > 0
        self.reads_pass = region_weight > 0 or consistency_weight > 0

    def score_batch(self, batch: TrainingBatch) -> PatchScores:
        """Scores and predictions of the clean images, in one pass (two with an encoder of its own)."""
        classifier: Any = batch.classifier
        with (
            evaluation_mode(classifier, batch.images.device.type),
            recorded(classifier.backbone, batch.images, -1, self.saliency) as recording,
        ):
            # Not classifier(...), which would be a second forward of FSDP's root within the first one.
            logits = classifier.head(classifier.extract_feat(batch.images))
            scores, tokens = recording.finished()
        own = self.score(batch.images) if self.encoder is not None else scores
        assert own is not None
        saliency = self.class_saliency(own, tokens, batch)
        return _CleanScores(saliency, own.groups, own.grid, own.num_prefix_tokens, logits)

    def class_saliency(self, scores: PatchScores, tokens: Tensor, batch: TrainingBatch) -> Tensor:
        """The saliency [B, L'], for a subclass that makes something of the tokens [B, L, C] and the classifier."""
        return scores.saliency

    def draw_mask(
        self, images: Tensor, partner: Tensor, scores: PatchScores | None, generator: torch.Generator | None
    ) -> tuple[Tensor, tuple[int, int]]:
        """False in the least attended square; its side is drawn for the whole batch."""
        assert scores is not None  # mask_needs_scores
        side = draw_side(scores.grid, self.min_side, self.max_side, generator)
        least, _ = extreme_blocks(scores.saliency, scores.grid, side)
        return ~block_mask(least, side, scores.grid), scores.grid

    def partner_pixels(self, images: Tensor, partner: Tensor, mask: Tensor, scores: PatchScores | None) -> Tensor:
        """The partners, shifted so that their most attended square is where the mask is False."""
        assert scores is not None  # mask_needs_scores
        return _moved(images, partner, mask, scores)

    def draw_ratio(
        self,
        scores: PatchScores | None,
        partner: Tensor,
        mask: Tensor,
        grid: tuple[int, int],
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The share of each image's own label; the attention of the partners is that of what they show."""
        if self.ratio == 'attention' and scores is not None:
            saliency = scores.saliency
            return attention_ratio(saliency, partner, mask, _moved(saliency, partner, mask, scores))
        return area_ratio(mask)

    def mix_scored(
        self,
        images: Tensor,
        scores: PatchScores | None,
        generator: torch.Generator | None = None,
        partner: Tensor | None = None,
    ) -> MixResult:
        """Mix images with scores; see :meth:`MaskMixer.mix`."""
        result = super().mix_scored(images, scores, generator, partner)
        return _Mix(**vars(result), logits=getattr(scores, 'logits', None))

    def after_pass(self, result: MixResult, seen: MixedPass) -> tuple[MixResult, dict[str, Tensor]]:
        """Add the losses of the regions and of the consistency; the label stays."""
        assert isinstance(result, _Mix) and result.mask is not None
        losses, labels, partner = {}, seen.batch.labels, result.partner
        if self.region_weight:
            patches = seen.tokens[:, seen.scores.num_prefix_tokens :]
            regions = zip(region_means(patches, result.mask), (labels, labels[partner]), strict=True)
            # A distilled backbone gives its head one feature for each token, and the mean stands for both.
            distilled = isinstance(seen.features[-1], tuple | list)
            own, other = (
                seen.batch.head_loss(((mean, mean) if distilled else mean,), label)['loss'] for mean, label in regions
            )
            losses['region_loss'] = self.region_weight / 2 * (own + other)
        if result.logits is not None:
            share = result.ratio[:, None]
            target = (share * result.logits + (1 - share) * result.logits[partner]).float().softmax(dim=1)
            prediction = seen.batch.classifier.head(seen.features).float().log_softmax(dim=1)
            losses['consistency_loss'] = self.consistency_weight * F.kl_div(prediction, target, reduction='batchmean')
        return result, losses


def _moved(values: Tensor, partner: Tensor, mask: Tensor, scores: PatchScores) -> Tensor:
    """Images or maps of the partners, shifted so that their most salient square is where the mask is False."""
    side = math.isqrt(int((~mask[0]).sum()))
    least, most = extreme_blocks(scores.saliency, scores.grid, side)
    return shift_patches(values[partner], least - most[partner], scores.grid)
