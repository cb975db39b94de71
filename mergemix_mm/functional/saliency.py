"""Which patches matter: attention rows of one layer, after token merging, given back to the original tokens.

Source: MergeMix (https://arxiv.org/abs/2510.23479). Attention is given back *per token*, as proportional attention
requires. No function builds a map of all queries by all keys. Shapes: B batch, H heads, K current tokens, D head
width, L original tokens.

A token that gets much attention adds little to the output if its value is short, and trained transformers let short
values collect attention that is not needed elsewhere. Where a function takes ``value``, the attention of each head is
multiplied by the norm of the token's value before the mean over the heads, after the norm-based analysis of
https://arxiv.org/abs/2004.10102 (its norm is that of the value after the output projection; here the projection is
left out, so that nothing more is computed), and each row is scaled to a sum of 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .token_merge import TokenGroups


def class_attention(query: Tensor, key: Tensor, size: Tensor | None = None, value: Tensor | None = None) -> Tensor:
    """Attention from the class token to every token, mean over the heads, in float32.

    Args:
        query (Tensor): [B, H, D], the class token's.
        key (Tensor): [B, H, K, D].
        size (Tensor, optional): [B, K] tokens per group; adds log(size) to the logits (proportional attention).
            Defaults to None.
        value (Tensor, optional): [B, H, K, D]; the attention is weighted by its norm. Defaults to None.

    Returns:
        Tensor: [B, K], rows sum to 1.
    """
    row = _attention(query.unsqueeze(2), key, size, value).mean(dim=(1, 2))
    return row if value is None else _to_sum_one(row)


def received_attention(
    query: Tensor,
    key: Tensor,
    weight: Tensor,
    size: Tensor | None = None,
    chunk_size: int = 64,
    value: Tensor | None = None,
) -> Tensor:
    """Attention that every token receives, weighted mean over queries and mean over heads, in float32.

    Args:
        query (Tensor): [B, H, K, D].
        key (Tensor): [B, H, K, D].
        weight (Tensor): [B, K], the number of original queries that each query stands for.
        size (Tensor, optional): [B, K], as in :func:`class_attention`. Defaults to None.
        chunk_size (int): Queries computed at a time; memory is O(B * H * chunk_size * K). Defaults to 64.
        value (Tensor, optional): [B, H, K, D]; the attention is weighted by its norm. Defaults to None.

    Returns:
        Tensor: [B, K], rows sum to 1.
    """
    weight = weight.float()
    total = torch.zeros_like(weight)
    for rows, share in zip(query.split(chunk_size, dim=2), weight.split(chunk_size, dim=1), strict=True):
        # Elementwise on purpose: autocast would compute a product of matrices in low precision.
        total += (_attention(rows, key, size, value).sum(dim=1) * share.unsqueeze(-1)).sum(dim=1)
    return total / (weight.sum(dim=1, keepdim=True) * query.size(1)) if value is None else _to_sum_one(total)


def restore_attention(attention: Tensor, groups: TokenGroups, proportional: bool = True) -> Tensor:
    """Give every original token its part of its group's attention.

    With proportional attention a merged token holds the attention of its whole group, so each member gets attention /
    size: the mass is preserved. Without it, a merged token counts once and each member gets the value as it is.

    Args:
        attention (Tensor): [B, K].
        groups (TokenGroups): the groups before the scored layer's own merge.
        proportional (bool): Whether the attention was proportional. Defaults to True.

    Returns:
        Tensor: [B, L] float32.
    """
    return groups.restore(attention / groups.size if proportional else attention)


def top_down_saliency(attention: Tensor, tokens: Tensor, class_weight: Tensor) -> Tensor:
    """Attention of the patches, weighted by how much each one resembles the image's class (after TdAttenMix).

    A_p * max(cos(z_p, w), 0), in float32: bottom-up attention, and the classifier's weights of the class from the top
    down (https://arxiv.org/abs/2501.15409).

    Args:
        attention (Tensor): [B, L'], of the patches.
        tokens (Tensor): [B, L', C], their tokens as the classifier would get them.
        class_weight (Tensor): [B, C], the classifier's weights of each image's class.

    Returns:
        Tensor: [B, L'] float32; the attention alone for an image of which no patch resembles the class, as with
            weights of 0.
    """
    # Elementwise on purpose: autocast would compute a product of matrices in low precision.
    alike = F.cosine_similarity(tokens.float(), class_weight.float().unsqueeze(1), dim=2).clamp(min=0)
    weighted = attention.float() * alike
    return torch.where((weighted > 0).any(dim=1, keepdim=True), weighted, attention.float())


def _attention(query: Tensor, key: Tensor, size: Tensor | None, value: Tensor | None) -> Tensor:
    # In float32: top-k compares attention of many patches that differ in the third digit, which is all that bfloat16
    # has.
    with torch.autocast(query.device.type, enabled=False):
        logits = (query.float() * query.size(-1) ** -0.5) @ key.float().transpose(-1, -2)
        if size is not None:
            logits = logits + size.log()[:, None, None, :]
        attention = logits.softmax(dim=-1)
        return attention if value is None else attention * value.float().norm(dim=-1).unsqueeze(2)


def _to_sum_one(row: Tensor) -> Tensor:
    return row / row.sum(dim=1, keepdim=True).clamp(min=torch.finfo(row.dtype).tiny)
