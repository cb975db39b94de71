"""Measurements of ratio_fidelity.py: what mixed digits show of either digit, and how far saliency can be trusted.

All ways to mix get the same partners and the same lambdas. The digits come with masks of their ink.
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from mmpretrain.models.utils.batch_augments import CutMix
from torch import Tensor, nn

from mergemix_mm.evaluation.localization import mass_on_object, object_in_top, object_share
from mergemix_mm.functional import (
    area_ratio,
    attention_ratio,
    derangement,
    gaussian_ratio,
    mix_images,
    sample_lambda,
    topk_mask,
)
from mergemix_mm.models.vision_encoders import SALIENCIES, PatchScores, build_vision_encoder, score_patches

from .digits import Digits

RATIOS = ('area', 'attention', 'gaussian')
RESIZEMIX_RANGE = (0.1, 0.8)  # MMPretrain's lam_min and lam_max.
# With fewer kept patches than this, a correlation means nothing.
MIN_KEPT = 8


@torch.no_grad()
def score(
    encoder: nn.Module,
    images: Tensor,
    num_merge: int | None,
    layer: int | None,
    prop_attn: bool = True,
    saliency: str = 'attention',
    scale: float = 1.0,
) -> PatchScores:
    """The scoring pass of MergeMix over images [N, 3, H, W] at once."""
    return score_patches(
        build_vision_encoder(encoder), images, num_merge, layer, prop_attn=prop_attn, saliency=saliency, scale=scale
    )


def copied(scores: PatchScores) -> Tensor:
    """The saliency [N, L'] if each patch had the whole attention of its group instead of its part of it."""
    return scores.saliency * scores.groups.restore(scores.groups.size)[:, scores.num_prefix_tokens :]


def visible_ink(masks: Tensor, partner_masks: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Count the pixels of either digit that a mixed image shows.

    Args:
        masks (Tensor): [B, H, W] bool, the ink of the own digits.
        partner_masks (Tensor): [B, H, W] bool, the ink of the partners' digits at the places of the mix.
        own (Tensor): [B, H, W] bool, True where an image keeps its own pixels.

    Returns:
        tuple[Tensor, Tensor]: [B] pixels of the own digit, [B] pixels of the partner's.
    """
    return (masks & own).sum(dim=(1, 2)).float(), (partner_masks & ~own).sum(dim=(1, 2)).float()


def to_pixels(mask: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """mask [B, L'] bool on the patch grid -> [B, H, W] bool."""
    ones = torch.ones(len(mask), 1, *size)
    # Mixing an image of ones with one of zeros shows where mix_images keeps pixels.
    images, partner = torch.cat([ones, torch.zeros_like(ones)]), torch.arange(len(mask) * 2).roll(len(mask))
    return mix_images(images, partner, torch.cat([mask, mask]), grid)[: len(mask), 0].bool()


def cut_boxes(lam: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The boxes of CutMix for lambdas [B]: own pixels [B, H, W] bool, and ratios [B] corrected to the clipped boxes."""
    own, ratio = torch.ones(len(lam), *size, dtype=torch.bool), torch.empty(len(lam))
    augment = CutMix(alpha=1.0)
    for i, value in enumerate(lam.tolist()):
        (top, bottom, left, right), ratio[i] = augment.cutmix_bbox_and_lam(size, value)
        own[i, top:bottom, left:right] = False
    return own, ratio


def resize_into(masks: Tensor, own: Tensor) -> Tensor:
    """Scale masks [B, H, W] down into the boxes outside of ``own``, as ResizeMix does with whole partners."""
    pasted = torch.zeros_like(masks)
    for mask, keep, target in zip(masks, own, pasted, strict=True):
        rows, cols = (~keep).any(dim=1).nonzero().flatten(), (~keep).any(dim=0).nonzero().flatten()
        if len(rows):
            small = nn.functional.interpolate(mask[None, None].float(), (len(rows), len(cols)), mode='bilinear')
            target[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1] = small[0, 0] > 0.5
    return pasted


def mix_all_ways(
    scores: dict[str, PatchScores], masks: Tensor, alpha: float, generator: torch.Generator
) -> dict[str, tuple]:
    """Mix one batch in every way, with the same partners and lambdas.

    Args:
        scores (dict[str, PatchScores]): The scores of the batch, ``merged`` and ``unmerged``.
        masks (Tensor): [B, H, W] bool, the ink of the digits.
        alpha (float): Each image has its own lambda ~ Beta(alpha, alpha).
        generator (torch.Generator): Source of randomness, except for the boxes of CutMix, which draw from numpy.

    Returns:
        dict[str, tuple]: For each arm the ratio, the visible ink of the own digit and that of the partner, [B] each.
    """
    merged, unmerged = scores['merged'], scores['unmerged']
    size, grid, prefix = tuple(masks.shape[1:]), merged.grid, merged.num_prefix_tokens
    partner = derangement(len(masks), generator)
    lam = sample_lambda(alpha, len(masks), generator)

    own, ratio = cut_boxes(lam, size)
    arms = {'CutMix': (ratio, *visible_ink(masks, masks[partner], own))}
    low, high = RESIZEMIX_RANGE
    own, ratio = cut_boxes(lam * (high - low) + low, size)
    arms['ResizeMix'] = (ratio, *visible_ink(masks, resize_into(masks[partner], own), own))

    drawn = merged.groups.restore(torch.rand(merged.groups.size.shape, generator=generator))[:, prefix:]
    ways = {
        'mergemix': (merged, merged.saliency, merged.saliency),
        'mergemix, attention copied': (merged, copied(merged), copied(merged)),
        'topk': (unmerged, unmerged.saliency, unmerged.saliency),
        'random': (merged, drawn, merged.saliency),
    }
    for name, (found, ranking, saliency) in ways.items():
        mask = topk_mask(ranking, lam)
        ink = visible_ink(masks, masks[partner], to_pixels(mask, grid, size))
        ratios = (
            area_ratio(mask),
            attention_ratio(saliency, partner, mask),
            gaussian_ratio(found.num_kept_patches, mask, generator),
        )
        arms |= {f'{name} / {policy}': (ratio, *ink) for policy, ratio in zip(RATIOS, ratios, strict=True)}
    return arms


# --- Attention consistency: saliency with and without merging, on clean and on mixed images -------------------------


def ranks(values: Tensor) -> Tensor:
    """The ranks in each row [N, M]. Equal values share the mean of their ranks."""
    below = (values.unsqueeze(1) < values.unsqueeze(2)).sum(dim=2)
    equal = (values.unsqueeze(1) == values.unsqueeze(2)).sum(dim=2)
    return below + (equal - 1) / 2


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """The correlation of each pair of rows [N, M] -> [N]; NaN if a row is constant."""
    a, b = (x.double() - x.double().mean(dim=1, keepdim=True) for x in (a, b))
    return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """The rank correlation of each pair of rows [N, M] -> [N]."""
    return pearson(ranks(a), ranks(b))


def top_overlap(a: Tensor, b: Tensor, share: float = 0.2) -> Tensor:
    """The share of the top 20% of one row that is in the top 20% of the other: [N, M] -> [N]. About 0.2 by chance."""
    first, second = topk_mask(a, share), topk_mask(b, share)
    return (first & second).sum(dim=1) / first.sum(dim=1).clamp(min=1)


def measure_saliency(encoder: nn.Module, test: Digits, args: argparse.Namespace) -> list[dict]:
    """Measure in each layer whether saliency finds the digit and agrees with the saliency without merging."""
    rows = []
    for layer in range(2, len(build_vision_encoder(encoder).layers) + 1):
        plain = score(encoder, test.images, 0, layer)
        merged = score(encoder, test.images, args.num_merge, layer)
        ways = {
            'no merging': plain.saliency,
            'merged, restored per token': merged.saliency,
            'merged, attention copied': copied(merged),
            'merged, no proportional attention': score(
                encoder, test.images, args.num_merge, layer, prop_attn=False
            ).saliency,
        }
        ink = object_share(test.masks, plain.grid)
        for name, saliency in ways.items():
            row = dict(
                layer=layer,
                saliency=name,
                mass_on_digit=_mean_and_error(mass_on_object(saliency, ink)),
                area_of_digit=float(ink.mean()),
                digit_in_top20=_mean_and_error(object_in_top(saliency, ink)),
            )
            if name != 'no merging':
                row |= _agreement(plain.saliency, saliency)
            rows.append(row)
    return rows


def measure_kinds(encoder: nn.Module, test: Digits, args: argparse.Namespace) -> list[dict]:
    """Measure for each layer and kind of saliency whether it finds the digit, and whether its labels match the mix."""
    rows = []
    for layer in range(2, len(build_vision_encoder(encoder).layers) + 1):
        for kind in SALIENCIES:
            found = score(encoder, test.images, args.num_merge, layer, saliency=kind)
            ink = object_share(test.masks, found.grid)
            generator = torch.Generator().manual_seed(args.seed)  # All rows mix the same pairs with the same lambdas.
            errors = []
            for _ in range(args.repeats):
                partner = derangement(len(test.images), generator)
                mask = topk_mask(found.saliency, sample_lambda(args.alpha, len(test.images), generator))
                kept = to_pixels(mask, found.grid, tuple(test.images.shape[-2:]))
                own, other = visible_ink(test.masks, test.masks[partner], kept)
                errors.append((attention_ratio(found.saliency, partner, mask) - own / (own + other)).abs())
            rows.append(
                dict(
                    layer=layer,
                    saliency=kind,
                    mass_on_digit=_mean_and_error(mass_on_object(found.saliency, ink)),
                    digit_in_top20=_mean_and_error(object_in_top(found.saliency, ink)),
                    ratio_error=_mean_and_error(torch.stack(errors).nanmean(dim=0)),
                )
            )
    return rows


def measure_clean_against_mixed(encoder: nn.Module, test: Digits, args: argparse.Namespace) -> list[dict]:
    """Compare the saliency of an image on the patches that it keeps, clean and inside the mixed image."""
    generator = torch.Generator().manual_seed(args.seed)
    np.random.seed(args.seed)
    clean = score(encoder, test.images, 0, args.layer)
    merged = score(encoder, test.images, args.num_merge, args.layer)
    partner = derangement(len(test.images), generator)
    lam = sample_lambda(args.alpha, len(test.images), generator)
    drawn = torch.rand(merged.groups.size.shape, generator=generator)
    rankings = {
        'mergemix': merged.saliency,
        'mergemix, attention copied': copied(merged),
        'topk': clean.saliency,
        'random': merged.groups.restore(drawn)[:, merged.num_prefix_tokens :],
    }
    size = tuple(test.images.shape[-2:])
    own, _ = cut_boxes(lam, size)
    kept = {'CutMix': own} | {
        name: to_pixels(topk_mask(rank, lam), clean.grid, size) for name, rank in rankings.items()
    }
    rows = []
    for name, own in kept.items():
        mixed = torch.where(own.unsqueeze(1), test.images, test.images[partner])
        saliency = score(encoder, mixed, 0, args.layer).saliency
        # Patches that a box of CutMix cuts belong to both images and are left out.
        mask = object_share(own, clean.grid) == 1
        rows.append(dict(arm=name, **_masked_agreement(clean.saliency, saliency, mask)))
    return rows


def _agreement(a: Tensor, b: Tensor) -> dict:
    measures: dict[str, Callable] = dict(spearman=spearman, pearson=pearson, top20_overlap=top_overlap)
    return {name: _mean_and_error(measure(a, b)) for name, measure in measures.items()}


def _masked_agreement(a: Tensor, b: Tensor, mask: Tensor) -> dict:
    """As :func:`_agreement`, on the masked patches of each row. Rows with few of them are left out."""
    pairs = [(x[keep][None], y[keep][None]) for x, y, keep in zip(a, b, mask, strict=True) if keep.sum() >= MIN_KEPT]
    if not pairs:
        return dict(images=0)
    measures: dict[str, Callable] = dict(spearman=spearman, pearson=pearson, top20_overlap=top_overlap)
    found = {name: torch.cat([measure(x, y) for x, y in pairs]) for name, measure in measures.items()}
    return dict(images=len(pairs), **{name: _mean_and_error(values) for name, values in found.items()})


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    values = values[~values.isnan()].double()
    return float(values.mean()), float(values.std() / len(values) ** 0.5)
