"""Mixers that are made of three parts: the saliency of the patches, a mask over them, and the ratio of the labels."""

from abc import abstractmethod
from copy import deepcopy
from inspect import signature

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ...functional import area_ratio, attention_ratio, derangement, replace_patches, sample_lambda
from ...utils.numbers import check_number
from ..evaluation_mode import evaluation_mode
from ..vision_encoders import SALIENCIES, PatchScores, build_vision_encoder, score_patches, scored_merge
from ..vlms.weight_names import old_options
from .base import Mixer, MixResult


class MaskMixer(Mixer):
    """Mix each image with a partner by a mask: saliency x mask x ratio.

    A subclass implements :meth:`draw_mask`. The label follows the area of the mask or, for every mask, the share of the
    visible attention; then, or if the mask itself needs it (`mask_needs_scores`), a vision transformer scores the
    patches.

    Args:
        alpha (float): Parameter of lambda ~ Beta(alpha, alpha), > 0 and finite. Defaults to 1.0.
        ratio (str): Share of the image's own label: ``'area'``, the share of the mask; ``'attention'``, the share of
            the visible attention. Defaults to ``'area'``.
        per_image (bool): Whether each image gets a lambda of its own instead of one for the batch (for all images of
            one size, where an encoder scores each image at its own size). Defaults to False.
        num_merge (int, optional): Patches merged before the scored layer, < L'. Defaults to None: half of them. Tokens
            with rotary positions (Qwen-VL, Pixtral, DINOv3, EVA-02) cannot merge: their encoders score all patches,
            None means 0 with a warning, and ``inflection`` and ``prop_attn`` have no effect.
        layer (int, optional): The scored layer, counted from 1. Defaults to None: at 3/4 of the depth, or the last
            layer of global attention before that.
        inflection (float): Shape of the merge schedule over the layers in [-1, 1]; negative merges more in the early
            layers. Defaults to -0.5.
        encoder (nn.Module | dict, optional): A frozen encoder of the mixer's own, or its config (MODELS), such as
            ``dict(type='VisionTransformer', arch='b', init_cfg=dict(type='Pretrained', ...))``,
            ``dict(type='timm.create_model', model_name='vit_base_patch16_224', pretrained=True)`` or
            ``dict(type='transformers.CLIPVisionModel.from_pretrained', pretrained_model_name_or_path=...)``. It is
            frozen, moves to the device of the images on first use and is not saved with the model; it sees the images
            as the classifier does, normalised by the classifier's mean and std. Defaults to None.
        prop_attn (bool): Proportional attention: merged tokens count with their size. Defaults to True.
        saliency (str): What makes a patch salient: ``'attention'``, the attention from the class token at the scored
            layer (without one, the attention received); ``'value_norm'``, the same weighted by the norm of the patch's
            value in each head (https://arxiv.org/abs/2004.10102); ``'mean'``, the mean attention of all layers up to
            the scored one; ``'received'``, the attention that it gets from all patches. Defaults to ``'attention'``.
        score_scale (float): Side of the images that are scored, as a share of the side of the images in (0, 1]. A
            smaller one costs less, and the saliency is interpolated; the encoder must take images of other sizes, and
            ``num_merge`` counts the patches of the small images. Defaults to 1.0.

    Raises:
        ValueError: If an argument is out of its range, or has no effect because nothing is scored.
    """

    # What `ratio` may be.
    ratios: tuple[str, ...] = ('area', 'attention')
    # Those among them that read the scores.
    scored_ratios: tuple[str, ...] = ('attention',)
    # Whether draw_mask() reads the scores; otherwise they are only for the ratio.
    mask_needs_scores: bool = False
    # Whether a clean training pass that merges tokens may take the place of the scoring pass.
    scored_by_clean_pass: bool = True

    def __init__(
        self,
        alpha: float = 1.0,
        ratio: str = 'area',
        per_image: bool = False,
        num_merge: int | None = None,
        layer: int | None = None,
        inflection: float = -0.5,
        encoder: nn.Module | dict | None = None,
        prop_attn: bool = True,
        saliency: str = 'attention',
        score_scale: float = 1.0,
    ) -> None:
        name = type(self).__name__
        check_number(f'{name}: alpha', alpha, '> 0 and finite', above=0)
        if num_merge is not None:
            allowed = 'an int >= 0, or None for half of the patches'
            check_number(f'{name}: num_merge', num_merge, allowed, least=0, integer=True)
        if layer is not None:
            allowed = 'an int >= 1, or None for 3/4 of the depth'
            check_number(f'{name}: layer', layer, allowed, least=1, integer=True)
        check_number(f'{name}: inflection', inflection, 'in [-1, 1]', least=-1, most=1)
        check_number(f'{name}: score_scale', score_scale, 'in (0, 1]', above=0, most=1)
        if ratio not in self.ratios:
            raise ValueError(f'{name}: ratio={ratio!r} must be one of {self.ratios}')
        if saliency not in SALIENCIES:
            raise ValueError(f'{name}: saliency={saliency!r} must be one of {SALIENCIES}')
        self.alpha = alpha
        self.ratio = ratio
        self.per_image = per_image
        self.num_merge = num_merge
        self.layer = layer
        self.inflection = inflection
        self.prop_attn = prop_attn
        self.saliency = saliency
        self.score_scale = score_scale
        if not self.needs_scores and (idle := 'encoder' if encoder is not None else self.scoring_option()):
            raise ValueError(f"{name}: ratio={ratio!r} scores nothing, so remove {idle} or set ratio='attention'")
        self.encoder = build_frozen(encoder) if encoder is not None else None
        if self.encoder is not None:
            # Refuses an encoder that cannot score, or not like this, before training starts.
            self.num_merge = scored_merge(build_vision_encoder(self.encoder), self.num_merge)

    def scoring_option(self) -> str | None:
        """The first option of the vision transformer that scores which is not the default, as ``name=value``."""
        defaults = signature(MaskMixer).parameters
        keys = ('num_merge', 'layer', 'inflection', 'prop_attn', 'saliency', 'score_scale')
        return next((f'{k}={v!r}' for k in keys if (v := getattr(self, k)) != defaults[k].default), None)

    @property
    def needs_scores(self) -> bool:
        """Whether patches are scored at all."""
        return self.mask_needs_scores or self.ratio in self.scored_ratios

    @property
    def needs_encoder(self) -> bool:
        """True if patches are scored, but neither by an encoder of its own nor in :meth:`score_batch`."""
        return self.needs_scores and self.encoder is None and not self.needs_classifier

    @abstractmethod
    def draw_mask(
        self, images: Tensor, partner: Tensor, scores: PatchScores | None, generator: torch.Generator | None
    ) -> tuple[Tensor, tuple[int, int]]:
        """Draw the masks.

        Args:
            images (Tensor): [B, 3, H, W] normalised images.
            partner (Tensor): [B] int64.
            scores (PatchScores, optional): The scores of the images; None unless patches are scored.
            generator (torch.Generator, optional): Source of randomness. Defaults to torch's global one.

        Returns:
            tuple: masks [B, rows * columns], bool or the own share in [0, 1], and (rows, columns), of which H and W
            are multiples.
        """

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
        ignored if the mixer has an encoder of its own.

        Raises:
            ValueError: If there is no encoder, or there are fewer than two images, or they do not fit the patch grid.
            UnsupportedEncoderError: If the encoder cannot score.
        """
        return self.mix_scored(images, self.score(images, encoder), generator, partner)

    @torch.no_grad()
    def mix_scored(
        self,
        images: Tensor,
        scores: PatchScores | None,
        generator: torch.Generator | None = None,
        partner: Tensor | None = None,
    ) -> MixResult:
        """Mix images that :meth:`score` has scored; see :meth:`mix`."""
        if partner is None:
            partner = self.draw_partner(images, scores, generator)
        mask, grid = self.draw_mask(images, partner, scores, generator)
        ratio = self.draw_ratio(scores, partner, mask, grid, generator)
        mixed = replace_patches(images, self.partner_pixels(images, partner, mask, scores), mask, grid)
        saliency, saliency_grid = (None, None) if scores is None else (scores.saliency, scores.grid)
        return MixResult(mixed, partner, ratio, mask, saliency, grid, images, saliency_grid=saliency_grid)

    def draw_partner(
        self, images: Tensor, scores: PatchScores | None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Partners [B] int64 for images whose caller has drawn none: a derangement."""
        if not self.needs_partner:
            return torch.arange(len(images), device=images.device)
        return derangement(len(images), generator, images.device)

    def partner_pixels(self, images: Tensor, partner: Tensor, mask: Tensor, scores: PatchScores | None) -> Tensor:
        """What an image shows where its mask is False, [B, 3, H, W]: :meth:`fill` with the partners in their place."""
        return self.fill(images, images[partner])

    def draw_lambda(self, batch_size: int, generator: torch.Generator | None = None) -> Tensor:
        """Lambda ~ Beta(alpha, alpha) for every image [B] float64 on the CPU, one for all unless ``per_image``."""
        return sample_lambda(self.alpha, batch_size if self.per_image else 1, generator).expand(batch_size)

    def draw_ratio(
        self,
        scores: PatchScores | None,
        partner: Tensor,
        mask: Tensor,
        grid: tuple[int, int],
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The share [B] of each image's own label, for masks [B, L'] on a grid."""
        if self.ratio == 'attention' and scores is not None:
            return attention_ratio(scores.saliency, partner, on_grid(mask, grid, scores.grid))
        return area_ratio(mask)

    def scoring_size(self, encoder: nn.Module | None = None) -> tuple[int, int] | None:
        """The image size of the encoder that scores: its position embeddings were trained at that size.

        None for an encoder of images of any size, without one, or if nothing is scored.
        """
        scorer = encoder if self.encoder is None else self.encoder
        return None if scorer is None or not self.needs_scores else build_vision_encoder(scorer).image_size

    def score(self, images: Tensor, encoder: nn.Module | None = None) -> PatchScores | None:
        """Only the scoring pass: saliency per patch, without gradient, in eval mode, up to the scored layer.

        Args:
            images (Tensor): [B, 3, H, W] normalised images.
            encoder (nn.Module, optional): As for :meth:`mix`.

        Returns:
            PatchScores | None: None if nothing is scored.

        Raises:
            ValueError: If there is no encoder.
        """
        if not self.needs_scores:
            return None
        encoder = self._own_encoder(images.device) or encoder
        if encoder is None:
            name = type(self).__name__
            raise ValueError(
                f'{name} has no encoder to score the patches with. Either train with '
                f"model=dict(type='MixupClassifier', ...), whose backbone scores, or give {name} a frozen encoder of "
                f"its own: dict(type='{name}', encoder=dict(type='VisionTransformer', ...))"
            )
        with evaluation_mode(encoder, images.device.type):
            return score_patches(
                build_vision_encoder(encoder),
                images,
                self.num_merge,
                self.layer,
                self.inflection,
                self.prop_attn,
                self.saliency,
                self.score_scale,
            )

    def _own_encoder(self, device: torch.device) -> nn.Module | None:
        # The mixer is not a module, so nothing else moves the encoder.
        return self.encoder.to(device) if self.encoder is not None else None


def on_grid(mask: Tensor, grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """A mask [B, L'] on another grid: each cell gets the mean of the cells that it covers."""
    if grid == target:
        return mask
    return F.interpolate(mask.float().unflatten(1, grid)[:, None], target, mode='area').flatten(1)


def build_frozen(encoder: nn.Module | dict) -> nn.Module:
    """Build a frozen model from its config in MODELS, or freeze the one that is given."""
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
