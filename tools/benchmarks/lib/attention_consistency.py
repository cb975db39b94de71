"""Attention consistency of MergeMix: agreement of saliency with merging and without, on clean and on mixed images."""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from mergemix_mm.functional import derangement, sample_lambda, topk_mask
from mergemix_mm.models.vision_encoders import build_vision_encoder

from .digit_mixes import copied, cut_boxes, ink_of, score, to_pixels
from .digits import Digits

# Fewer kept patches than this say nothing about a correlation.
MIN_KEPT = 8


def ranks(values: Tensor) -> Tensor:
    """Ranks of each row [N, M], equal values sharing the mean of their ranks."""
    below = (values.unsqueeze(1) < values.unsqueeze(2)).sum(dim=2)
    equal = (values.unsqueeze(1) == values.unsqueeze(2)).sum(dim=2)
    return below + (equal - 1) / 2


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of each pair of rows [N, M] -> [N]; NaN where a row is constant."""
    a, b = (x.double() - x.double().mean(dim=1, keepdim=True) for x in (a, b))
    return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlation of each pair of rows [N, M] -> [N]."""
    return pearson(ranks(a), ranks(b))


def top_overlap(a: Tensor, b: Tensor, share: float = 0.2) -> Tensor:
    """How much of the top 20% of one row is in the top 20% of the other: [N, M] -> [N]. By chance: about 0.2."""
    first, second = topk_mask(a, share), topk_mask(b, share)
    return (first & second).sum(dim=1) / first.sum(dim=1).clamp(min=1)


def measure_saliency(encoder: nn.Module, test: Digits, args: argparse.Namespace) -> list[dict]:
    """Per layer: does saliency find the digit, and does it agree with that of the encoder without merging?"""
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
        ink = ink_of(test.masks, plain.grid)
        for name, saliency in ways.items():
            mass = saliency / saliency.sum(dim=1, keepdim=True)
            row = dict(
                layer=layer,
                saliency=name,
                mass_on_digit=_mean_and_error((mass * ink).sum(dim=1)),
                area_of_digit=float(ink.mean()),
                digit_in_top20=_mean_and_error((ink * topk_mask(saliency, 0.2)).sum(dim=1) / ink.sum(dim=1)),
            )
            if name != 'no merging':
                row |= _agreement(plain.saliency, saliency)
            rows.append(row)
    return rows


def measure_clean_against_mixed(encoder: nn.Module, test: Digits, args: argparse.Namespace) -> list[dict]:
    """Saliency of an image, on the patches that it keeps, alone and inside the mixed image (scored without merging)."""
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
        # Patches that a box of CutMix cuts through belong to both images: they are left out.
        mask = ink_of(own, clean.grid) == 1
        rows.append(dict(arm=name, **_masked_agreement(clean.saliency, saliency, mask)))
    return rows


def _agreement(a: Tensor, b: Tensor) -> dict:
    measures: dict[str, Callable] = dict(spearman=spearman, pearson=pearson, top20_overlap=top_overlap)
    return {name: _mean_and_error(measure(a, b)) for name, measure in measures.items()}


def _masked_agreement(a: Tensor, b: Tensor, mask: Tensor) -> dict:
    """As :func:`_agreement`, on each row's own choice of patches; rows with few of them are left out."""
    pairs = [(x[keep][None], y[keep][None]) for x, y, keep in zip(a, b, mask, strict=True) if keep.sum() >= MIN_KEPT]
    if not pairs:
        return dict(images=0)
    measures: dict[str, Callable] = dict(spearman=spearman, pearson=pearson, top20_overlap=top_overlap)
    found = {name: torch.cat([measure(x, y) for x, y in pairs]) for name, measure in measures.items()}
    return dict(images=len(pairs), **{name: _mean_and_error(values) for name, values in found.items()})


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    values = values[~values.isnan()].double()
    return float(values.mean()), float(values.std() / len(values) ** 0.5)
