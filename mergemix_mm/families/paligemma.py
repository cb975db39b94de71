"""PaliGemma (https://arxiv.org/abs/2407.07726): image and prompt see each other, the answer is causal."""

from inspect import signature
from typing import Any

import torch
from torch import Tensor

from ..functional.preference import IGNORE_INDEX
from .base import Family, ImageInput, square_image


class PaliGemmaFamily(Family):
    """``PaliGemmaForConditionalGeneration``.

    The library makes the mask of the prefix from `token_type_ids` (0 prefix, 1 answer). Version 4 does so only if
    `labels` and an `attention_mask` are given as well. Otherwise every token attends to every other, answers included.
    In version 5, the model without its head takes no labels, and the prefix is causal without token types.
    """

    model_types = ('paligemma',)
    processors = ('PaliGemmaProcessor',)
    chat_template = 'paligemma'
    token_padding = Family.token_padding | dict(token_type_ids=0)
    is_prefix_model = True
    no_packing = 'image and prompt attend to each other in both directions'
    # Places and masks.
    answer_tokens = r'<(loc\d{4}|seg\d{3})>'

    def forward_kwargs(self, batch: dict) -> dict:
        """As in the base class, with the token types that hide later answer tokens from earlier positions."""
        kwargs = super().forward_kwargs(batch)
        self._match_mask()
        kwargs.setdefault('attention_mask', torch.ones_like(batch['input_ids']))
        kwargs['token_type_ids'] = _token_types(batch)
        if 'labels' in signature(self.base.forward).parameters:
            kwargs['labels'] = kwargs['token_type_ids']  # The model only checks that there are labels.
        return kwargs

    def generate_kwargs(self, batch: dict) -> dict:
        self._match_mask()
        return super().generate_kwargs(batch) | dict(token_type_ids=_token_types(batch))

    def largest_image(self, processor: dict) -> ImageInput:
        config = self.model.config
        side, patch = config.vision_config.image_size, config.vision_config.patch_size
        return square_image((side // patch) ** 2, config.image_token_id, side)

    def _match_mask(self) -> None:
        """Let version 4 make its mask in the dtype of the queries instead of that in which the weights were loaded."""
        base: Any = self.base  # The dtype is a plain attribute of the module.
        if hasattr(base, 'text_config_dtype'):
            weight = self.model.get_input_embeddings().weight
            autocast = torch.is_autocast_enabled(weight.device.type)
            base.text_config_dtype = torch.get_autocast_dtype(weight.device.type) if autocast else weight.dtype


def _token_types(batch: dict) -> Tensor:
    """1 from the first answer token of each sample on, [B, L]: a prompt between two answers must not see the second."""
    answered = torch.zeros_like(batch['input_ids'])
    if batch.get('token_type_ids') is not None:
        answered = batch['token_type_ids']
    if batch.get('labels') is not None:
        answered = torch.maximum(answered, (batch['labels'] != IGNORE_INDEX).to(answered))
    return answered.cummax(dim=1).values
