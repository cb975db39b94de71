"""The steps of the two MergeMix releases, written from a description of them to measure what they cost.

OpenMixup classifies, and a fork of LLaVA tunes vision-language models. To score, both run all layers and build the
attention map of each, without proportional attention in effect. They differ in how they merge and where gradient flows.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from mmpretrain.models.utils.batch_augments import Mixup
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mergemix_mm.functional import (
    TokenGroups,
    area_ratio,
    bipartite_soft_matching,
    merge_schedule,
    merge_tokens,
    replace_patches,
    sample_lambda,
    topk_mask,
)
from mergemix_mm.models import MergeMix, MixupClassifier
from mergemix_mm.models.vision_encoders import PatchScores, VisionEncoder, build_vision_encoder

Merge = Callable[[Tensor, Tensor, int], Tensor]


def run_with_maps(parts: VisionEncoder, x: Tensor, schedule: Sequence[int], layer: int, merge: Merge) -> list[Tensor]:
    """Run all layers with attention maps.

    Args:
        parts (VisionEncoder): The adapter of the encoder.
        x (Tensor): [B, L, C], the tokens that enter the first layer.
        schedule (Sequence[int]): How many tokens each layer merges.
        layer (int): The layer whose map is returned, counted from 1.
        merge (Callable): ``(tokens, keys [B, H, N, D], r) -> tokens`` merges r tokens.

    Returns:
        list[Tensor]: the tokens that enter each layer, those after the last one, and the map [B, H, K, K] of `layer`.
    """
    states = [x]
    for number, (part, r) in enumerate(zip(parts.layers, schedule, strict=True), start=1):
        query, key, value = part.query_key_value(x)
        attention = (query @ key.transpose(-1, -2) * query.size(-1) ** -0.5).softmax(dim=-1)
        if number == layer:
            read = attention.detach().clone()
        x = part.add_attention(x, (attention @ value).transpose(1, 2).flatten(2))
        x = part.feed_forward(merge(x, key, r) if r else x)
        states.append(x)
    return [*states, read]


def default_layer(parts: VisionEncoder) -> int:
    """The layer at 3/4 of the depth, counted from 1."""
    return -(-3 * len(parts.layers) // 4)


# --- OpenMixup --------------------------------------------------------------------------------------------------------


class OpenMixupStep:
    """A step of the release for classification: a scoring pass, a plain Mixup batch, and the mixed batch.

    The scoring pass runs all layers in training mode with gradient; its graph is thrown away, but lives until the other
    two passes have ended. Tokens match sample by sample, the class token stays first, and an index per token says which
    group holds it. The attention *to* the class token at one layer is restored with the groups after the last layer.
    Lambda is drawn once for the batch, and the share of kept patches is measured on the mask. The loss of the mixed
    batch uses the mean of the ratios.

    Args:
        model (MixupClassifier): Its backbone and head train. Its own augments are not used.
        num_merge (int, optional): Patches merged over all layers. Defaults to None: half of them.
        layer (int, optional): The scored layer, counted from 1. Defaults to None: at 3/4 of the depth.
        merges (bool): Whether tokens merge in the two passes that train, too. Defaults to True, as on CIFAR-100.
    """

    def __init__(
        self, model: MixupClassifier, num_merge: int | None = None, layer: int | None = None, merges: bool = True
    ) -> None:
        self.model, self.num_merge, self.layer, self.merges = model, num_merge, layer, merges
        self.mixup = Mixup(alpha=0.8)

    def __call__(self, images: Tensor, samples: list[DataSample]) -> dict[str, Tensor]:
        """The losses of a batch of normalised images [B, 3, H, W] with labels."""
        labels = F.one_hot(torch.cat([sample.gt_label for sample in samples]), self.model.head.num_classes).float()
        # The name keeps the graph of the scoring pass alive until this method returns.
        saliency, grid, graph = self.score(images)
        mask = topk_mask(saliency, sample_lambda(1.0, 1).expand(len(images)))
        partner = _redrawn_permutation(len(images), images.device)
        mixed = replace_patches(images, images[partner], mask, grid)
        base = self._loss(*self.mixup.mix(images.clone(), labels))
        ratio = area_ratio(mask).mean()
        loss = self._loss(mixed, ratio * labels + (1 - ratio) * labels[partner])
        del graph
        return dict(loss=loss, base_loss=base)

    def score(self, images: Tensor) -> tuple[Tensor, tuple[int, int], Tensor]:
        """Saliency [B, L'] of the patches, their grid, and the last tokens, which hold the graph of the pass."""
        parts = build_vision_encoder(self.model.backbone)
        tokens, read, groups, grid = self._run(parts, images, merges=True)
        # The map has the groups of its own layer, the index those of the last one: a valid index, but of other groups.
        rows = groups.index[:, parts.num_prefix_tokens :]
        restored = read.sum(dim=1).gather(1, rows.unsqueeze(-1).expand(-1, -1, read.size(-1)))
        return restored[:, :, 0], grid, tokens

    def _run(
        self, parts: VisionEncoder, images: Tensor, merges: bool
    ) -> tuple[Tensor, Tensor, TokenGroups, tuple[int, int]]:
        x, grid = parts.embed(images)
        prefix, num_tokens = parts.num_prefix_tokens, x.size(1)
        num_merge = (num_tokens - prefix) // 2 if self.num_merge is None else self.num_merge
        depth, groups = len(parts.layers), TokenGroups.identity(len(x), num_tokens, x.device)
        schedule = merge_schedule(depth, num_merge * merges, -0.5, num_tokens=num_tokens, protected=prefix)

        def merge(x: Tensor, key: Tensor, r: int) -> Tensor:
            nonlocal groups
            x, groups = merge_tokens(x, groups, bipartite_soft_matching(key.detach().mean(dim=1), r, prefix))
            return x

        *_, tokens, read = run_with_maps(parts, x, schedule, self.layer or default_layer(parts), merge)
        return tokens, read, groups, grid

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        parts = build_vision_encoder(self.model.backbone)
        tokens, *_ = self._run(parts, images, self.merges)
        samples = [DataSample().set_gt_score(label) for label in labels]
        return self.model.head.loss((parts.finish(tokens)[:, 0],), samples)['loss']


def _redrawn_permutation(size: int, device: torch.device) -> Tensor:
    """A permutation, drawn again up to ten times while an image is its own partner."""
    own = torch.arange(size, device=device)
    for _ in range(11):
        partner = torch.randperm(size, device=device)
        if not bool((partner == own).any()):
            break
    return partner


# --- The fork of LLaVA ------------------------------------------------------------------------------------------------


class ForkScoring(MergeMix):
    """MergeMix with the scoring pass of the release for vision-language models.

    The tower runs without gradient and through all layers, finds one matching for the whole batch (keys averaged over
    batch and heads) and carries a dense source matrix [B, L, K] from layer to layer. ``features`` keeps what a language
    model reads of the tower, [B, L', C]: each patch has the value of its group before the last layer.
    """

    features: Tensor | None = None

    @torch.no_grad()
    def score(self, images: Tensor, encoder: nn.Module | None = None) -> PatchScores:
        parts = build_vision_encoder(encoder)
        x, grid = parts.embed(images)
        prefix, (batch_size, num_tokens) = parts.num_prefix_tokens, x.shape[:2]
        num_merge = (num_tokens - prefix) // 2 if self.num_merge is None else self.num_merge
        depth, layer = len(parts.layers), self.layer or default_layer(parts)
        schedule = merge_schedule(depth, num_merge, self.inflection, num_tokens=num_tokens, protected=prefix)
        sources = [torch.eye(num_tokens, device=x.device).expand(batch_size, -1, -1)]

        def merge(x: Tensor, key: Tensor, r: int) -> Tensor:
            matrix = _merge_matrix(key.mean(dim=(0, 1)), r, prefix).to(x.dtype)
            size = sources[-1].sum(dim=1).unsqueeze(-1).to(x.dtype)
            sources.append(sources[-1] @ matrix.to(sources[-1].dtype))
            return matrix.T @ (x * size) / sources[-1].sum(dim=1).unsqueeze(-1).to(x.dtype)

        *states, read = run_with_maps(parts, x, schedule, layer, merge)
        by_size = {source.size(2): source for source in sources}
        hidden = states[-2]
        self.features = (by_size[hidden.size(1)].to(hidden.dtype) @ hidden)[:, prefix:]
        source = by_size[read.size(-1)]
        saliency = (source @ read.float().mean(dim=1)[:, 0].unsqueeze(-1)).squeeze(-1)[:, prefix:]
        groups = TokenGroups(source.argmax(dim=-1), source.sum(dim=1))
        return PatchScores(saliency, groups, grid, prefix)


def _merge_matrix(metric: Tensor, r: int, protected: int) -> Tensor:
    """The matrix of 0 and 1 that merges N tokens into N - r, for every image alike: metric [N, C] -> [N, N - r]."""
    unit = F.normalize(metric, dim=-1)
    tokens = torch.arange(len(unit), device=unit.device)
    even, odd = tokens[protected::2], tokens[protected + 1 :: 2]
    best, partner = (unit[even] @ unit[odd].T).max(dim=-1)
    chosen = best.argsort(descending=True)[:r]
    target = tokens.clone()
    target[even[chosen]] = odd[partner[chosen]]
    kept = tokens[target == tokens]
    return (target.unsqueeze(1) == kept).float()
