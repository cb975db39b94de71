"""PaliGemma (https://arxiv.org/abs/2407.07726): image and prompt see each other, the answer is causal."""

import torch
from torch import Tensor

from .base import Family


class PaliGemmaFamily(Family):
    """``PaliGemmaForConditionalGeneration``.

    The library makes the mask of the prefix from `token_type_ids` (0 prefix, 1 answer), but only with `labels` beside
    them and with an `attention_mask`; without, every token sees every other, the answer included.
    """

    def forward_kwargs(self, batch: dict) -> dict:
        """As always, with the token types that keep later answer tokens out of earlier positions."""
        kwargs = super().forward_kwargs(batch)
        kwargs.setdefault('attention_mask', torch.ones_like(batch['input_ids']))
        kwargs['token_type_ids'] = _token_types(batch)
        kwargs['labels'] = kwargs['token_type_ids']  # Their presence is all that the model without its head reads.
        return kwargs


def _token_types(batch: dict) -> Tensor:
    """1 from the first answer token of each sample on, [B, L]: a prompt between two answers must not see the second."""
    answered = torch.zeros_like(batch['input_ids'])
    if batch.get('token_type_ids') is not None:
        answered = batch['token_type_ids']
    if batch.get('labels') is not None:
        answered = torch.maximum(answered, (batch['labels'] != -100).to(answered))
    return answered.cummax(dim=1).values
