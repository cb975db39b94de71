"""Mistral 3 (https://mistral.ai/news/mistral-small-3-1): Pixtral's images, whose patches are merged 2 x 2."""

from typing import Any

from .pixtral import SYSTEM_PROMPT, PixtralFamily


class Mistral3Family(PixtralFamily):
    """``Mistral3ForConditionalGeneration``: Mistral Small 3.1 and 3.2, Magistral Small, Ministral 3.

    Batches are those of Pixtral, and one placeholder stands for ``spatial_merge_size`` ** 2 patches. The system prompt
    has a turn of its own.
    """

    model_types = ('mistral3',)
    tower_types = ()
    chat_template = 'mistral3'

    @classmethod
    def reads(cls, processor: Any) -> bool:
        """By the class of the processor, and by its tokenizer."""
        return type(processor).__name__ in cls.processors and SYSTEM_PROMPT in processor.tokenizer.get_vocab()
