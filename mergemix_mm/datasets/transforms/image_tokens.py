"""How a processor writes images: the tokens that stand for each of them, and the tensors."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...families.base import declared, family_of, token_padding
from ...utils.text import RecordError
from ..conversations.chat_template import placeholder_of

# Image processors that move the channels to the front before they read the option: of transformers 4, and of 5.
CHANNELS_FIRST = {'BaseImageProcessorFast', 'TorchvisionBackend', 'PilBackend'}
# Temporary texts that processors write while they replace image tokens.
WRITTEN_BETWEEN = ('<placeholder>', '<|placeholder|>')


class ImageTokens:
    """Finds the tokens that a processor writes for each image, and checks them one by one.

    Attributes:
        placeholder (str): What the chat template writes for an image, and the processor replaces.
        token (str): What the tokenizer reads in its place, one token.
        token_id (int): Its id.
        in_text (str): The token with what the processor writes around it, for the tokenizer.
        replaced (set[str]): What the processor replaces in a text by images or videos.
        start_id (int | None): Token of the template that belongs to the image after it.
        end_id (int | None): Token of the template that belongs to the image before it.
        family (type[Family]): The processor's family.
    """

    def __init__(self, processor) -> None:
        self.family = family_of(processor)
        self.processor = self.family.image_processor(processor)
        self.placeholder = placeholder_of(processor)
        self.token = str(self.family.image_token(processor))
        self.token_id = processor.tokenizer.convert_tokens_to_ids(self.token)
        self.in_text = self.token.join(self.family.image_margins)
        named = (getattr(processor, name, None) for name in ('image_token', 'video_token', 'audio_token'))
        self.replaced = {*WRITTEN_BETWEEN, self.placeholder, self.token, *(str(token) for token in named if token)}
        vocabulary = processor.tokenizer.get_vocab()
        self.start_id, self.end_id = (vocabulary.get(mark) for mark in self.family.image_frame or (None, None))
        self._by_size: dict[tuple[int, int, bool], list[int]] = {}

    def process(
        self, text: str, ids: Sequence[int], images: Sequence[Image.Image], special_tokens: bool
    ) -> tuple[list[list[int]], dict[str, torch.Tensor]]:
        """Process the images of one text.

        Args:
            text (str): With one image token per image.
            ids (Sequence[int]): The tokens of the text.
            images (Sequence[PIL.Image.Image]): At least one.
            special_tokens (bool): Whether ``ids`` begin with tokens that the tokenizer adds.

        Returns:
            tuple: The tokens of each image, and the image tensors by name.

        Raises:
            RecordError: If the processor refuses an image.
            RuntimeError: If the processor does not write the text as assumed.
        """
        if self.family.is_prefix_model:  # The processor writes more than the images into the text.
            expansions = [[self.token_id] * self.processor.image_seq_length] * len(images)
            return expansions, self.tensors(images)
        found, tensors = self._call(text, images, special_tokens)
        if len(images) == 1:
            place = list(ids).index(self.token_id)
            expansions = [found[place : len(found) - (len(ids) - place - 1)]]
        else:
            # In the whole text, the tokens of several images cannot be told apart: each size is processed once, alone.
            expansions = self.expansions(images)
        expanded = expand(ids, self.token_id, expansions)
        if expanded != found or not all(self.token_id in tokens for tokens in expansions):
            raise RuntimeError(
                f'EncodeConversation: {type(self.processor).__name__} tokenizes text next to images in a way that its '
                f'tokenizer alone does not ({len(found)} tokens, expected {len(expanded)}); labels would be wrong.'
            )
        return expansions, tensors

    def expansions(self, images: Sequence[Image.Image]) -> list[list[int]]:
        """The tokens of each image of one text."""
        alone = len(images) == 1 or not self.family.tiles_single_images
        return [self._expansion(image, alone) for image in images]

    def tensors(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """The tensors of some images, without any text."""
        return self._call(self.token * len(images), images, False)[1]

    def _call(
        self, text: str, images: Sequence[Image.Image], special_tokens: bool
    ) -> tuple[list[int], dict[str, torch.Tensor]]:
        text = text.replace(self.token, self.placeholder)  # The text has no image token that a record spells.
        given, axes = with_axes(self.processor, images)
        given = [[image] for image in given] if self.family.nests_images else given
        given = [given] if self.family.tiles_single_images else given
        try:
            output = self.processor(
                text=[text], images=given, return_tensors='pt', add_special_tokens=special_tokens, **axes
            )
        except ValueError as error:  # such as an aspect ratio out of its range
            raise RecordError(f'{type(self.processor).__name__} refuses the images: {error}') from error
        of_text = token_padding()
        tensors = {key: value for key, value in output.items() if key not in of_text}
        return output['input_ids'][0].tolist(), tensors

    def _expansion(self, image: Image.Image, alone: bool) -> list[int]:
        """The tokens of an image, which only depend on its size and on whether it is `alone` in its text."""
        key = (*image.size, alone)
        if key not in self._by_size:
            number = 1 if alone else 2
            found = self._call(self.token * number, [image] * number, False)[0]
            self._by_size[key] = found[: len(found) // number]
        return self._by_size[key]


def with_axes(processor, images: Sequence[Image.Image]) -> tuple[list, dict[str, str]]:
    """Images for the call of a processor of transformers, and the option that tells it the order of their axes.

    Without the option, it guesses the order from the sizes and takes a height of 1 or 3 pixels for the channels.

    Args:
        processor: The processor, or its image processor.
        images (Sequence[PIL.Image.Image]): In RGB.

    Returns:
        tuple[list, dict[str, str]]: The images, and ``input_data_format``; no option for a processor of another kind,
        such as :class:`SphinxProcessor`.
    """
    from transformers import BaseImageProcessor

    image_processor = getattr(processor, 'image_processor', processor)
    if not isinstance(image_processor, BaseImageProcessor):
        return list(images), {}
    bases = {cls.__name__ for cls in type(image_processor).__mro__}
    as_arrays = any(bases & set(family.array_image_processors) for family in declared())
    found: list[Any] = list(images)
    if as_arrays:
        found = [np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)) for image in images]
    first = bool(bases & CHANNELS_FIRST) or as_arrays
    return found, dict(input_data_format='channels_first' if first else 'channels_last')


def expand(ids: Sequence[int], token_id: int, expansions: Iterable[Sequence[int]]) -> list[int]:
    """Replace the placeholder of each image by its tokens."""
    remaining = iter(expansions)
    return [token for one in ids for token in (next(remaining) if one == token_id else (one,))]
