"""The scoring of patches in the MergeMix release, written from a description of it to measure its cost."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mergemix_mm.functional import TokenGroups, merge_schedule
from mergemix_mm.models.batch_augments import MergeMix
from mergemix_mm.models.vision_encoders import PatchScores, build_vision_encoder


class ReleaseScheme(MergeMix):
    """MergeMix with the scoring pass of the release.

    It keeps the gradient through the scoring pass, materialises the attention map of every layer, finds one matching
    for the whole batch (keys averaged over batch and heads), has no proportional attention, and carries a dense source
    matrix [B, L, K] from layer to layer by matrix products. Like the scoring of this package, it stops at the scored
    layer and frees the graph once the patches have scores. So the difference in cost comes only from these points.
    """

    def score(self, images: Tensor, encoder: nn.Module | None = None) -> PatchScores:
        parts = build_vision_encoder(encoder)
        layer = self.layer or -(-3 * len(parts.layers) // 4)
        with torch.enable_grad():
            x, grid = parts.embed(images)
            prefix, (batch_size, num_tokens) = parts.num_prefix_tokens, x.shape[:2]
            num_merge = (num_tokens - prefix) // 2 if self.num_merge is None else self.num_merge
            schedule = merge_schedule(layer - 1, num_merge, self.inflection, num_tokens=num_tokens, protected=prefix)
            source = torch.eye(num_tokens, device=x.device).expand(batch_size, -1, -1)
            maps = []
            for part, r in zip(parts.layers[:layer], [*schedule, 0], strict=True):
                query, key, value = part.query_key_value(x)
                attention = (query @ key.transpose(-1, -2) * query.size(-1) ** -0.5).softmax(dim=-1)
                maps.append(attention)
                if len(maps) == layer:
                    break
                x = part.add_attention(x, (attention @ value).transpose(1, 2).flatten(2))
                if r:
                    merge = _merge_matrix(key.mean(dim=(0, 1)), r, prefix)
                    size = source.sum(dim=1).unsqueeze(-1)
                    source = source @ merge
                    x = merge.T @ (x * size) / source.sum(dim=1).unsqueeze(-1)
                x = part.feed_forward(x)
            from_class_token = maps[-1].mean(dim=1)[:, 0]
            saliency = (source @ from_class_token.unsqueeze(-1)).squeeze(-1)[:, prefix:]
        groups = TokenGroups(source.argmax(dim=-1), source.sum(dim=1))
        return PatchScores(saliency.detach(), groups, grid, prefix)


def _merge_matrix(metric: Tensor, r: int, protected: int) -> Tensor:
    """The matrix of 0 and 1 that merges N tokens into N - r, for every image alike: metric [N, C] -> [N, N - r]."""
    unit = F.normalize(metric.detach(), dim=-1)
    tokens = torch.arange(len(unit), device=unit.device)
    even, odd = tokens[protected::2], tokens[protected + 1 :: 2]
    best, partner = (unit[even] @ unit[odd].T).max(dim=-1)
    chosen = best.argsort(descending=True)[:r]
    target = tokens.clone()
    target[even[chosen]] = odd[partner[chosen]]
    kept = tokens[target == tokens]
    return (target.unsqueeze(1) == kept).float()
