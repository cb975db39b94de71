"""Janus (https://arxiv.org/abs/2410.13848): a padded square image, a SigLIP-like tower, an MLP; VQ codes to draw."""

from typing import Any

from torch import Tensor, nn

from .base import ANY_WORD, Family, ImageInput, ImagePrompt, square_image
from .layout import mark_frames
from .towers import CLIPLayer, SiglipEncoder
from .vision_encoder import UnsupportedEncoderError


class JanusLayer(CLIPLayer):
    """`JanusVisionEncoderLayer`: SigLIP's layer with other names, and a dropout after the projection."""

    def add_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        attn = self.module.self_attn
        return x + attn.projection_dropout(attn.projection_layer(attended))

    @property
    def attention_dropout(self) -> float:
        return self.module.self_attn.attention_dropout


class JanusEncoder(SiglipEncoder):
    """`JanusVisionModel`."""

    layer_type, layer_name = JanusLayer, 'JanusVisionEncoderLayer'

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        if model.config.use_qk_norm:
            raise UnsupportedEncoderError(model, 'its config sets use_qk_norm=True, which this adapter leaves out')


class JanusFamily(Family):
    """``JanusForConditionalGeneration``. Only `JanusModel` uses its part ``generation``."""

    model_types = ('janus',)
    processors = ('JanusProcessor',)
    chat_template = 'janus'
    tower_adapters = {'transformers.models.janus.modeling_janus.JanusVisionModel': JanusEncoder}
    parts = dict(
        vision_tower=('model.vision_model',),
        projector=('model.aligner',),
        language_model=('model.language_model', 'lm_head'),
        # The VQ model belongs to no part: it stays frozen.
        generation=('model.generation_embeddings', 'model.generation_aligner', 'model.generation_head'),
    )

    @classmethod
    def preamble(cls, processor: Any) -> str:
        if not processor.use_default_system_prompt:
            return ''
        from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

        return DEFAULT_SYSTEM_PROMPT

    @classmethod
    def image_processor(cls, processor: Any) -> Any:
        processor = super().image_processor(processor)
        processor.use_default_system_prompt = False  # The text has it already.
        return processor

    @classmethod
    def image_prompt(cls, processor: Any, image_size: int | None = None) -> ImagePrompt:
        size = image_size or processor.image_processor.size['height']
        return ImagePrompt(size, True, '', processor.image_start_token, dict(generation_mode='image'))

    def complete_processor(self, processor: Any) -> None:
        processor.num_image_tokens = self.model.config.vision_config.num_image_tokens

    def modality(self, batch: dict) -> Tensor:
        return mark_frames(super().modality(batch))

    def largest_image(self, processor: dict) -> ImageInput:
        config = self.model.config
        return square_image(
            config.vision_config.num_image_tokens, config.image_token_id, config.vision_config.image_size
        )

    def image_prompt_end(self, image_size: int | None = None) -> tuple[int, list[int]]:
        known = getattr(self.model.generation_config, 'generation_kwargs', None) or {}
        begin = known.get('boi_token_id')
        return self.model.config.vision_config.image_size, [ANY_WORD + 1 if begin is None else begin]
