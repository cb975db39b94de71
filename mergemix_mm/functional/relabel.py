"""Labels that follow what a mixed image shows: to the network (TransMix, MixPro), of maps and tokens (TokenMix, SMMix).

Shapes: B batch, L' patches. A mask is True where an image keeps its own pixel, or the own share in [0, 1]. A ratio is
the share of an image's own label, in [0, 1].
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .mixing import attention_ratio


def nearest_mask(mask: Tensor, grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """A mask on another grid: each cell gets the value at its centre (TransMix, nearest-neighbour down-sampling).

    Args:
        mask (Tensor): [B, rows * columns] over `grid`, any dtype.
        grid (tuple[int, int]): Rows and columns of the mask.
        target (tuple[int, int]): Rows and columns of the result.

    Returns:
        Tensor: [B, L'] over `target`, of the mask's dtype.
    """
    rows, columns = (
        ((torch.arange(new, device=mask.device) + 0.5) * (old / new)).long().clamp(max=old - 1)
        for old, new in zip(grid, target, strict=True)
    )
    return mask.unflatten(1, grid)[:, rows[:, None], columns].flatten(1)


def mixed_attention_ratio(attention: Tensor, mask: Tensor) -> Tensor:
    """The share of a mixed image's attention that lies on the image's own patches (TransMix, label assignment).

    sum A M / sum A, in float32.

    Args:
        attention (Tensor): [B, L'], of the mixed images; non-negative.
        mask (Tensor): [B, L'].

    Returns:
        Tensor: [B] float32; the area ratio where no patch has any attention.
    """
    return attention_ratio(attention, torch.arange(len(attention), device=attention.device), mask)


def progressive_ratio(area: Tensor, attention: Tensor, area_labels: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Trust the attention as far as the network predicts the label of the area (MixPro, progressive attention labels).

    s * attention + (1 - s) * area with s = cos(area_labels, softmax(logits)): at the start of the training predictions
    are poor and the area decides.

    Args:
        area (Tensor): [B], the share of the area.
        attention (Tensor): [B], the share of the attention.
        area_labels (Tensor): [B, num_classes] non-negative labels mixed by the area, smoothed as in the loss.
        logits (Tensor): [B, num_classes] for the mixed images.

    Returns:
        tuple: ratios [B] and s [B], both float32 in [0, 1].
    """
    progress = F.cosine_similarity(area_labels.float(), logits.float().softmax(dim=1), dim=1).clamp(0, 1)
    return torch.lerp(area.float(), attention.float(), progress), progress


def visible_scores(saliency: Tensor, partner: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """How much of each image's own saliency, and how much of the partner's, can be seen in the mix (TokenMix).

    Args:
        saliency (Tensor): [B, L'], non-negative. Each row is divided by its sum; a row of zeros counts as uniform.
        partner (Tensor): [B] int64.
        mask (Tensor): [B, L'] bool, or the own share of each patch in [0, 1].

    Returns:
        tuple[Tensor, Tensor]: [B] float32 each, in [0, 1]. They need not sum to one.
    """
    saliency = saliency.float()
    total = saliency.sum(dim=1, keepdim=True)
    saliency = torch.where(total > 0, saliency / torch.where(total > 0, total, 1), 1 / saliency.size(1))
    share = mask.to(saliency)
    return (saliency * share).sum(dim=1), (saliency[partner] * (1 - share)).sum(dim=1)


def region_means(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the patch tokens [B, L', C] where mask [B, L'] is True, and where it is False: [B, C] each.

    The mean of an empty region is 0.
    """
    own = mask.to(tokens)[..., None]
    inside, outside = ((tokens * share).sum(dim=1) / share.sum(dim=1).clamp(min=1) for share in (own, 1 - own))
    return inside, outside
