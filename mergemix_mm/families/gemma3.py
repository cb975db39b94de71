"""Gemma 3 (https://arxiv.org/abs/2503.19786): averaged SigLIP patches; the tokens of an image see each other."""

from typing import Any

from torch import Tensor, nn

from .base import Family, ImageInput
from .layout import mark_frames


class Gemma3Family(Family):
    """``Gemma3ForConditionalGeneration``.

    The tokens of an image attend to each other in both directions, and everything else is causal. The library makes
    this mask from `token_type_ids`, which are 1 at the tokens of images (PaliGemma's are 1 at answers). They follow
    from the placeholders, so batches need not have them.
    """

    model_types = ('gemma3',)
    processors = ('Gemma3Processor',)
    chat_template = 'gemma3'
    token_padding = Family.token_padding | dict(token_type_ids=0)
    image_margins = ('\n\n', '\n\n')
    no_packing = 'the tokens of an image attend to each other in both directions'

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        attention = model.config.get_text_config()._attn_implementation or ''
        if 'flash' in attention:  # Version 4 would drop the mask, and version 5 refuses it itself.
            raise ValueError(
                f'attn_implementation={attention!r} takes no mask by which the tokens of an image see each other; use '
                "'sdpa' or 'eager' for Gemma 3"
            )

    @classmethod
    def placeholder(cls, processor: Any) -> str:
        # `image_token` of the processor is this token in transformers 5, and that of the features in version 4.
        return processor.boi_token

    @classmethod
    def image_token(cls, processor: Any) -> str:
        return processor.tokenizer.image_token

    @classmethod
    def image_processor(cls, processor: Any) -> Any:
        processor = super().image_processor(processor)
        if getattr(processor.image_processor, 'do_pan_and_scan', None):
            raise ValueError(
                'do_pan_and_scan=True of the processor of Gemma 3 adds crops of an image and sentences about them, '
                'which is not supported: set do_pan_and_scan=False'
            )
        processor.full_image_sequence = processor.full_image_sequence.strip('\n')  # The text has the margins already.
        return processor

    def modality(self, batch: dict) -> Tensor:
        return mark_frames(super().modality(batch))

    def largest_image(self, processor: dict) -> ImageInput:
        config = self.model.config
        side, tokens = config.vision_config.image_size, config.mm_tokens_per_image
        ids = [config.boi_token_index, *[self.image_token_id] * tokens, config.eoi_token_index]
        return ImageInput(ids, tokens, lambda size: dict(pixel_values=(size, 3, side, side)))

    def model_kwargs(self, batch: dict) -> dict:
        kwargs = super().model_kwargs(batch)
        if 'pixel_values' in kwargs:  # Without images, the library has faster masks.
            kwargs['token_type_ids'] = self.placeholders(batch).to(batch['input_ids'].dtype)
        return kwargs
