"""TokenMix: random blocks of tokens, and labels by what can be seen of each image (https://arxiv.org/abs/2207.08409)."""

from dataclasses import replace
from typing import Any

import torch
from mmpretrain.registry import BATCH_AUGMENTS
from torch import Tensor, nn

from ...functional import random_blocks, visible_scores
from ...utils.numbers import check_number
from ..vision_encoders import PatchScores
from .base import MixResult, TrainingBatch
from .mask_mixer import MaskMixer, build_frozen, on_grid


@BATCH_AUGMENTS.register_module()
class TokenMix(MaskMixer):
    """Replace random blocks of tokens by the partner's, with the label that each image still shows.

    The map of each clean image sums to one. The own label counts with the part of the own map that is visible, the
    partner's label with the visible part of the partner's map, so that the two do not sum to one. The paper takes the
    maps from a trained ``teacher``: its score for the true class at each place of the feature map. Without a teacher
    the maps are the attention of the backbone that is trained (or of ``encoder``), in a scoring pass.

    Args:
        partner_share (float): Share of the tokens that the partner takes, in (0, 1). Defaults to 4 / 7: the authors'
            code replaces half of 196 tokens and 14 more.
        patch_size (int, optional): Side of a token in pixels, > 0. Defaults to None: that of the vision transformer
            that scores, or 16 if none does.
        ratio (str): ``'visible'``, the label above; ``'attention'`` or ``'area'`` as for :class:`MaskMixer`, with
            labels that sum to one. Defaults to ``'visible'``.
        teacher (nn.Module | dict, optional): A trained classifier with the classes of the data, or its config (MODELS),
            whose backbone ends in a feature map, such as ``dict(type='ImageClassifier',
            backbone=dict(type='ResNet', depth=50), neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=100, in_channels=2048),
            init_cfg=dict(type='Pretrained', checkpoint=...))``. It is frozen, and works in `MixupClassifier` only,
            which knows the labels. Defaults to None.
        **kwargs: ``per_image`` of :class:`MaskMixer`, and for the attention without a teacher its ``num_merge``,
            ``layer``, ``inflection``, ``encoder``, ``prop_attn``, ``saliency`` and ``score_scale``.

    Raises:
        ValueError: If an argument is out of its range or has no effect, if images are not a multiple of the tokens, or
            if a teacher has other classes than the data.
    """

    ratios = ('visible', 'attention', 'area')
    scored_ratios = ('visible', 'attention')

    def __init__(
        self,
        partner_share: float = 4 / 7,
        patch_size: int | None = None,
        ratio: str = 'visible',
        teacher: nn.Module | dict | None = None,
        **kwargs: Any,
    ) -> None:
        check_number('TokenMix: partner_share', partner_share, 'in (0, 1)', above=0, below=1)
        if patch_size is not None:
            check_number('TokenMix: patch_size', patch_size, 'an int >= 1', least=1, integer=True)
        if 'alpha' in kwargs:
            raise ValueError('TokenMix: it draws no lambda; remove alpha, or set partner_share')
        super().__init__(ratio=ratio, **kwargs)
        self.partner_share = partner_share
        self.patch_size = patch_size
        if teacher is not None and (self.encoder is not None or not self.needs_scores):
            raise ValueError(f'TokenMix: teacher beside ratio={ratio!r} or encoder has no effect: remove one of them')
        if teacher is not None and (idle := self.scoring_option()):
            raise ValueError(f'TokenMix: {idle} has no effect beside a teacher, which scores; remove it')
        self.teacher = None if teacher is None else build_frozen(teacher)
        self.needs_classifier = self.teacher is not None

    @property
    def no_margin(self) -> str | None:
        """Labels that do not sum to one make no margin."""
        return (
            "mixer.ratio='visible' does not sum to one; set 'attention' or 'area'" if self.ratio == 'visible' else None
        )

    def draw_mask(
        self, images: Tensor, partner: Tensor, scores: PatchScores | None, generator: torch.Generator | None
    ) -> tuple[Tensor, tuple[int, int]]:
        """One mask of blocks for all images of the batch, or one for each with ``per_image=True``."""
        side, (height, width) = self.patch_size or 16, images.shape[-2:]
        grid = (height // side, width // side)
        if self.patch_size is None and scores is not None and self.teacher is None:
            grid = scores.grid
        elif height % side or width % side or min(grid) < 2:
            raise ValueError(
                f'TokenMix: images of {height} x {width} pixels must be a multiple of patch_size={side} and have at '
                'least two patches along each side; set patch_size to a divisor of height and width'
            )
        count = round(self.partner_share * grid[0] * grid[1])
        masks = [~random_blocks(grid, count, generator) for _ in range(len(images) if self.per_image else 1)]
        return torch.stack(masks).to(images.device).expand(len(images), -1), grid

    @torch.no_grad()
    def mix_scored(
        self,
        images: Tensor,
        scores: PatchScores | None,
        generator: torch.Generator | None = None,
        partner: Tensor | None = None,
    ) -> MixResult:
        """Mix images with scores; see :meth:`MaskMixer.mix`."""
        result = super().mix_scored(images, scores, generator, partner)
        if self.ratio != 'visible' or scores is None or result.mask is None or result.grid is None:
            return result
        mask = on_grid(result.mask, result.grid, scores.grid)
        own, other = visible_scores(scores.saliency, result.partner, mask)
        return replace(result, ratio=own, partner_ratio=other)

    @torch.no_grad()
    def score_batch(self, batch: TrainingBatch) -> PatchScores:
        """The teacher's score for the true class at each place of its feature map."""
        assert self.teacher is not None  # needs_classifier
        teacher: Any = self.teacher.to(batch.images.device)
        features = teacher.backbone(batch.images)[-1]
        if features.ndim != 4:
            raise ValueError(
                f'TokenMix: teacher.backbone={type(teacher.backbone).__name__} gives {list(features.shape)}, and a '
                "feature map [B, C, h, w] is needed; a VisionTransformer gives one with out_type='featmap'"
            )
        size, grid = len(features), (features.size(2), features.size(3))
        places = features.permute(0, 2, 3, 1).reshape(-1, features.size(1), 1, 1)
        logits = teacher.head(teacher.neck((places,)) if teacher.with_neck else (places.flatten(1),))
        if logits.size(1) != batch.labels.size(1):
            raise ValueError(
                f'TokenMix: teacher has {logits.size(1)} classes, the data {batch.labels.size(1)}: take a teacher '
                'that was trained on this dataset'
            )
        scores = logits.float().softmax(dim=1).unflatten(0, (size, -1))
        saliency = torch.einsum('blc,bc->bl', scores, batch.labels.float())
        return PatchScores.unmerged(saliency, grid)
