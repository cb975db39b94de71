"""MergeMix: image mixing by attention after token merging (https://arxiv.org/abs/2510.23479)."""

from copy import deepcopy

import torch
from mmengine.model import BaseModule
from mmpretrain.registry import BATCH_AUGMENTS, MODELS
from torch import Tensor, nn

from ...functional import (
    area_ratio,
    attention_ratio,
    derangement,
    gaussian_ratio,
    replace_patches,
    sample_lambda,
    topk_mask,
)
from ...utils.numbers import check_number
from ..evaluation_mode import evaluation_mode
from ..vision_encoders import PatchScores, build_vision_encoder, score_patches, scored_merge
from ..vlms.weight_names import old_options
from .base import Mixer, MixResult

MASKS = ('mergemix', 'topk', 'random', 'inverse')
RATIOS = ('area', 'attention', 'gaussian')


@BATCH_AUGMENTS.register_module()
class MergeMix(Mixer):
    """Mix each image with a partner: the image keeps its most salient patches, and the partner fills the rest.

    A vision transformer scores the patches, merging similar tokens on the way; each image keeps p = floor(lambda * L')
    of its L' patches, lambda ~ Beta(alpha, alpha). `MixupClassifier` scores with its own backbone. In a plain
    `ImageClassifier`, whose batch augments cannot reach the model, give an ``encoder``.

    Args:
        alpha (float): Parameter of the Beta distribution, > 0 and finite. Defaults to 1.0.
        num_merge (int, optional): Patches merged before the scored layer, < L'. Defaults to None: half of them, as the
            paper's 98 of 196. Tokens with rotary positions (Qwen-VL, Pixtral, DINOv3, EVA-02) cannot merge: their
            encoders score all patches, None means 0 with a warning, and ``inflection`` and ``prop_attn`` have no
            effect.
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
        per_image (bool): Whether each image gets a lambda of its own instead of one for the batch (for all images of
            one size, where an encoder scores each image at its own size). Defaults to False.
        encoder (nn.Module | dict, optional): A frozen encoder of MergeMix's own, or its config (MODELS), such as
            ``dict(type='VisionTransformer', arch='b', init_cfg=dict(type='Pretrained', ...))``,
            ``dict(type='timm.create_model', model_name='vit_base_patch16_224', pretrained=True)`` or
            ``dict(type='transformers.CLIPVisionModel.from_pretrained', pretrained_model_name_or_path=...)``. It is
            frozen, moves to the device of the images on first use and is not saved with the model; it sees the images
            as the classifier does, normalised by the classifier's mean and std. Defaults to None.
        prop_attn (bool): Proportional attention: merged tokens count with their size. Defaults to True.

    Raises:
        ValueError: If an argument is out of its range.
    """

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
    ) -> None:
        check_number('MergeMix: alpha', alpha, '> 0 and finite', above=0)
        if num_merge is not None:
            allowed = 'an int >= 0, or None for half of the patches'
            check_number('MergeMix: num_merge', num_merge, allowed, least=0, integer=True)
        if layer is not None:
            allowed = 'an int >= 1, or None for 3/4 of the depth'
            check_number('MergeMix: layer', layer, allowed, least=1, integer=True)
        check_number('MergeMix: inflection', inflection, 'in [-1, 1]', least=-1, most=1)
        if mask not in MASKS:
            raise ValueError(f'MergeMix: mask={mask!r} must be one of {MASKS}')
        if ratio not in RATIOS:
            raise ValueError(f'MergeMix: ratio={ratio!r} must be one of {RATIOS}')
        self.alpha = alpha
        # 'topk' is the ablation without merging.
        self.num_merge = 0 if mask == 'topk' else num_merge
        self.layer = layer
        self.inflection = inflection
        self.mask = mask
        self.ratio = ratio
        self.per_image = per_image
        self.prop_attn = prop_attn
        self.encoder = _build_frozen(encoder) if encoder is not None else None
        if self.encoder is not None:
            # Refuses an encoder that cannot score, or not like this, before training starts.
            self.num_merge = scored_merge(build_vision_encoder(self.encoder), self.num_merge)

    @property
    def needs_encoder(self) -> bool:
        """True without an encoder of its own: the model that is trained has to score."""
        return self.encoder is None

    @property
    def no_margin(self) -> str | None:
        """``ratio='gaussian'`` makes none: it is drawn without looking at the mask."""
        if self.ratio != 'gaussian':
            return None
        return "mixer.ratio='gaussian' does not look at the mask and makes no margin; set 'attention' or 'area'"

    @torch.compiler.disable  # Draws from Python's generator, and changes the mode of the model.
    def mix(
        self,
        images: Tensor,
        encoder: nn.Module | None = None,
        generator: torch.Generator | None = None,
        partner: Tensor | None = None,
    ) -> MixResult:
        """Mix a batch of images with each other; see :meth:`Mixer.mix`.

        Without `partner`, B >= 2 images are mixed along a derangement. The state of `encoder` is left unchanged; it is
        ignored if MergeMix has an encoder of its own.

        Raises:
            ValueError: If there is no encoder, or there are fewer than two images, or they do not fit the patch grid.
            UnsupportedEncoderError: If merging cannot serve the encoder.
        """
        if partner is None:
            partner = self._draw_partner(images, generator)
        return self.mix_scored(images, self.score(images, encoder), generator, partner)

    @torch.no_grad()
    def mix_scored(
        self,
        images: Tensor,
        scores: PatchScores,
        generator: torch.Generator | None = None,
        partner: Tensor | None = None,
    ) -> MixResult:
        """Mix images that :meth:`score` has scored; see :meth:`mix`."""
        if partner is None:
            partner = self._draw_partner(images, generator)
        mask = self._draw_mask(scores, generator)
        ratio = self._ratio(scores, partner, mask, generator)
        mixed = replace_patches(images, self.fill(images, images[partner]), mask, scores.grid)
        return MixResult(mixed, partner, ratio, mask, scores.saliency, scores.grid, images)

    def scoring_size(self, encoder: nn.Module | None = None) -> tuple[int, int] | None:
        """The image size of the encoder that scores: its position embeddings were trained at that size.

        None for an encoder of images of any size, or without one.
        """
        scorer = encoder if self.encoder is None else self.encoder
        return None if scorer is None else build_vision_encoder(scorer).image_size

    def score(self, images: Tensor, encoder: nn.Module | None = None) -> PatchScores:
        """Only the scoring pass: saliency per patch, without gradient, in eval mode, up to the scored layer.

        Args:
            images (Tensor): [B, 3, H, W] normalised images.
            encoder (nn.Module, optional): As for :meth:`mix`.

        Raises:
            ValueError: If there is no encoder.
        """
        encoder = self._own_encoder(images.device) or encoder
        if encoder is None:
            raise ValueError(
                'MergeMix has no encoder to score the patches with. Either train with '
                "model=dict(type='MixupClassifier', ...), whose backbone scores, or give MergeMix a frozen encoder of "
                "its own: dict(type='MergeMix', encoder=dict(type='VisionTransformer', ...))"
            )
        with evaluation_mode(encoder, images.device.type):
            return score_patches(
                build_vision_encoder(encoder), images, self.num_merge, self.layer, self.inflection, self.prop_attn
            )

    def _draw_partner(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        if not self.needs_partner:
            return torch.arange(len(images), device=images.device)
        return derangement(len(images), generator, images.device)

    def _own_encoder(self, device: torch.device) -> nn.Module | None:
        # MergeMix is not a module, so nothing else moves the encoder.
        return self.encoder.to(device) if self.encoder is not None else None

    def _draw_mask(self, scores: PatchScores, generator: torch.Generator | None) -> Tensor:
        saliency = scores.saliency
        if self.mask == 'random':
            # One number per group of merged tokens, so that groups are kept or replaced as a whole.
            device = generator.device if generator is not None else saliency.device
            drawn = torch.rand(scores.groups.size.shape, generator=generator, device=device).to(saliency.device)
            saliency = scores.groups.restore(drawn)[:, scores.num_prefix_tokens :]
        elif self.mask == 'inverse':
            saliency = -saliency
        draws = len(saliency) if self.per_image else 1
        return topk_mask(saliency, sample_lambda(self.alpha, draws, generator).expand(len(saliency)))

    def _ratio(self, scores: PatchScores, partner: Tensor, mask: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.ratio == 'attention':
            return attention_ratio(scores.saliency, partner, mask)
        if self.ratio == 'gaussian':
            return gaussian_ratio(scores.num_kept_patches, mask, generator)
        return area_ratio(mask)


def _build_frozen(encoder: nn.Module | dict) -> nn.Module:
    model: nn.Module
    if isinstance(encoder, dict):
        model = MODELS.build(deepcopy(dict(encoder)) | old_options(encoder.get('type')))
        # In timm and transformers, building loads the trained weights, and a method of this name would redraw them.
        if isinstance(model, BaseModule):
            model.init_weights()
    else:
        model = encoder
    model.eval()  # Not chained: train() and eval() of MMPretrain's backbones return None.
    return model.requires_grad_(False)
