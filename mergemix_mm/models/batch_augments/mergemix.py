"""MergeMix: image mixing by attention after token merging (https://arxiv.org/abs/2510.23479)."""

import torch
from mmpretrain.registry import BATCH_AUGMENTS
from torch import Tensor, nn

from ...functional import gaussian_ratio, topk_mask
from ..vision_encoders import PatchScores
from .mask_mixer import MaskMixer

MASKS = ('mergemix', 'topk', 'random', 'inverse')


@BATCH_AUGMENTS.register_module()
class MergeMix(MaskMixer):
    """Mix each image with a partner: the image keeps its most salient patches, and the partner fills the rest.

    A vision transformer scores the patches, merging similar tokens on the way; each image keeps p = floor(lambda * L')
    of its L' patches, lambda ~ Beta(alpha, alpha). `MixupClassifier` scores with its own backbone. In a plain
    `ImageClassifier`, whose batch augments cannot reach the model, give an ``encoder``.

    Args:
        alpha (float): Parameter of the Beta distribution, > 0 and finite. Defaults to 1.0.
        num_merge (int, optional): Patches merged before the scored layer, < L'. Defaults to None: half of them, as the
            paper's 98 of 196. Tokens with rotary positions (Qwen-VL, Pixtral, DINOv3, EVA-02) cannot merge: their
            encoders score all patches, None means 0 with a warning, and ``inflection`` and ``prop_attn`` have no
            effect. To be left at None where the clean training pass scores (``MixupClassifier(clean_weight=1.0)`` with
            a `ToMeVisionTransformer`): the backbone's own schedule merges there.
        layer (int, optional): The scored layer, counted from 1. Defaults to None: at 3/4 of the depth, or the last
            layer of global attention before that.
        inflection (float): Shape of the merge schedule over the layers in [-1, 1]; negative merges more in the early
            layers. Defaults to -0.5.
        mask (str): Which patches are kept: ``'mergemix'``, the most salient after merging; ``'topk'``, the same
            without merging; ``'random'``, random groups of merged tokens (single patches without merging);
            ``'inverse'``, the least salient, so that the partner covers what the image shows (a loser for SimPO).
            Defaults to ``'mergemix'``.
        ratio (str): Share of the image's own label: ``'attention'``, the share of the visible attention; ``'area'``,
            the share of patches; ``'gaussian'``, drawn as the paper does, without looking at the mask or at how many
            patches merged. Defaults to ``'attention'``, which came closest to what can be seen
            (docs/benchmarks/mergemix.md).
        per_image (bool): See :class:`MaskMixer`. Defaults to False.
        encoder (nn.Module | dict, optional): See :class:`MaskMixer`. Defaults to None.
        prop_attn (bool): Proportional attention: merged tokens count with their size. Defaults to True.
        saliency (str): What makes a patch salient: ``'attention'``, the paper's; ``'value_norm'``, ``'mean'`` or
            ``'received'``, see :class:`MaskMixer`. Defaults to ``'attention'``.
        score_scale (float): See :class:`MaskMixer`; must be 1 for ``mask='random'`` and ``ratio='gaussian'``, which
            read the groups of merged tokens. Defaults to 1.0.

    Raises:
        ValueError: If an argument is out of its range.
    """

    ratios = ('area', 'attention', 'gaussian')
    mask_needs_scores = True

    def __init__(
        self,
        alpha: float = 1.0,
        num_merge: int | None = None,
        layer: int | None = None,
        inflection: float = -0.5,
        mask: str = 'mergemix',
        ratio: str = 'attention',
        per_image: bool = False,
        encoder: nn.Module | dict | None = None,
        prop_attn: bool = True,
        saliency: str = 'attention',
        score_scale: float = 1.0,
    ) -> None:
        if mask not in MASKS:
            raise ValueError(f'{type(self).__name__}: mask={mask!r} must be one of {MASKS}')
        if score_scale != 1 and (mask == 'random' or ratio == 'gaussian'):
            raise ValueError(
                f"{type(self).__name__}: score_scale={score_scale!r} must be 1 with mask='random' or ratio='gaussian', "
                'which read the groups of merged tokens'
            )
        self.mask = mask
        super().__init__(
            alpha=alpha,
            ratio=ratio,
            per_image=per_image,
            num_merge=0 if mask == 'topk' else num_merge,  # 'topk' is the ablation without merging.
            layer=layer,
            inflection=inflection,
            encoder=encoder,
            prop_attn=prop_attn,
            saliency=saliency,
            score_scale=score_scale,
        )

    @property
    def no_margin(self) -> str | None:
        """``ratio='gaussian'`` makes none: it is drawn without looking at the mask."""
        if self.ratio != 'gaussian':
            return None
        return "mixer.ratio='gaussian' does not look at the mask and makes no margin; set 'attention' or 'area'"

    def draw_mask(
        self, images: Tensor, partner: Tensor, scores: PatchScores | None, generator: torch.Generator | None
    ) -> tuple[Tensor, tuple[int, int]]:
        """Top-k of the saliency, or of what ``mask`` puts in its place, on the patch grid."""
        assert scores is not None  # mask_needs_scores
        saliency = scores.saliency
        if self.mask == 'random':
            # One number per group of merged tokens, so that groups are kept or replaced as a whole.
            device = generator.device if generator is not None else saliency.device
            drawn = torch.rand(scores.groups.size.shape, generator=generator, device=device).to(saliency.device)
            saliency = scores.groups.restore(drawn)[:, scores.num_prefix_tokens :]
        elif self.mask == 'inverse':
            saliency = -saliency
        return topk_mask(saliency, self.draw_lambda(len(saliency), generator)), scores.grid

    def draw_ratio(
        self,
        scores: PatchScores | None,
        partner: Tensor,
        mask: Tensor,
        grid: tuple[int, int],
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The share of each image's own label; the paper's ``'gaussian'`` beside those of every mask."""
        if self.ratio == 'gaussian' and scores is not None:
            return gaussian_ratio(scores.num_kept_patches, mask, generator)
        return super().draw_ratio(scores, partner, mask, grid, generator)
