"""Pixtral (https://arxiv.org/abs/2410.07073): images of any size in one packed sequence; a token ends each row."""

import math
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import ANY_WORD, IMAGE, MARKER, TEXT, Family, ImageInput
from .layout import PaddedFamily
from .vision_encoder import EncoderLayer, VisionEncoder, check_layers, rotate, split_heads

# The token that only tokenizers of a system prompt of its own have: those of Mistral 3 and Pixtral Large.
SYSTEM_PROMPT = '[SYSTEM_PROMPT]'


class PixtralLayer(EncoderLayer):
    """`PixtralAttentionLayer`: queries and keys turn with the row and the column of their patch."""

    # Cosine and sine of the patches of the images that the encoder embedded last, [L', D / 2].
    positions: tuple[Tensor, Tensor]

    def query_key_value(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attn, x = self.module.attention, self.module.attention_norm(x)
        projections = attn.q_proj(x), attn.k_proj(x), attn.v_proj(x)
        query, key, value = (split_heads(projection, attn.num_heads) for projection in projections)
        return rotate(query, *self.positions), rotate(key, *self.positions), value

    def add_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        return x + self.module.attention.o_proj(attended)

    def feed_forward(self, x: Tensor) -> Tensor:
        return x + self.module.feed_forward(self.module.ffn_norm(x))

    @property
    def attention_dropout(self) -> float:
        return self.module.attention.dropout


class PixtralEncoder(VisionEncoder):
    """`PixtralVisionModel`: patches only, of images of any size, without a norm after the layers.

    The library packs images into one sequence and masks the others. Here, they lie in a batch of one size.
    """

    layers: Sequence[PixtralLayer]
    num_prefix_tokens, has_class_token = 0, False
    image_size, no_merge = None, 'rotary positions'

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        check_layers(model, model.transformer.layers, 'PixtralAttentionLayer')
        self.layers = [PixtralLayer(layer) for layer in model.transformer.layers]
        self.patch_size = (model.patch_size, model.patch_size)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        patches = self.model.patch_conv(images)
        grid = (patches.size(2), patches.size(3))
        x = self.model.ln_pre(patches.flatten(2).transpose(1, 2))
        positions = self._positions(x, *grid)
        for layer in self.layers:
            layer.positions = positions
        return x, grid

    def finish(self, x: Tensor) -> Tensor:
        return x

    def _positions(self, x: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        places = torch.cartesian_prod(torch.arange(rows, device=x.device), torch.arange(columns, device=x.device))
        if has_table(self.model):
            places = places[:, 0] * (self.model.config.image_size // self.model.patch_size) + places[:, 1]
        # The library repeats the angle of a pair of channels.
        cos, sin = (both.chunk(2, dim=-1)[0] for both in self.model.patch_positional_embedding(x, places))
        return cos, sin


def has_table(tower: nn.Module) -> bool:
    """Whether a tower looks its positions up, as in transformers 4, instead of computing any of them."""
    return tower.patch_positional_embedding.inv_freq.dim() == 2


class PixtralFamily(PaddedFamily):
    """``LlavaForConditionalGeneration`` with a ``PixtralVisionModel``: ``pixel_values`` [N, 3, H, W].

    The processor writes an image as rows of placeholders. Another token ends each row: ``[IMG_BREAK]``, and
    ``[IMG_END]`` after the last one.
    """

    model_types = ('llava',)
    tower_types: ClassVar[tuple[str, ...]] = ('pixtral',)
    processors = ('PixtralProcessor',)
    chat_template = 'pixtral'
    forward_keys = (*Family.forward_keys, 'image_sizes')
    tower_adapters = {'transformers.models.pixtral.modeling_pixtral.PixtralVisionModel': PixtralEncoder}

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        strategy = getattr(model.config, 'vision_feature_select_strategy', 'full')
        if strategy != 'full':
            raise ValueError(
                f"vision_feature_select_strategy={strategy!r} must be 'full' for a tower of model_type='pixtral': it "
                'has no class token, so the first patch of the batch would be cut off'
            )

    @classmethod
    def reads(cls, processor: Any) -> bool:
        """By the class of the processor, and by its tokenizer: Mistral 3 has the same class of processors."""
        return super().reads(processor) and SYSTEM_PROMPT not in processor.tokenizer.get_vocab()

    @property
    def token_side(self) -> int:
        """Height and width in pixels of what one placeholder stands for: a patch, or the patches that are merged."""
        config = self.model.config
        return config.vision_config.patch_size * getattr(config, 'spatial_merge_size', 1)

    def image_lengths(self, batch: dict) -> Tensor:
        if self.pixels(batch) is None:
            return batch['input_ids'].new_zeros(0)
        return (batch['image_sizes'] // self.token_side).prod(dim=1)

    def modality(self, batch: dict) -> Tensor:
        result = super().modality(batch)
        # The ids of the tokens that end a row are not in the config of the model.
        after_image = F.pad(result[:, :-1] == IMAGE, (1, 0))
        return result.masked_fill(after_image & (result == TEXT), MARKER)

    def model_kwargs(self, batch: dict) -> dict:
        self._check_sizes(batch)
        return super().model_kwargs(batch)

    def largest_image(self, processor: dict) -> ImageInput:
        config, size = self.model.config, processor.get('size') or {}
        side, edge = self.token_side, size.get('longest_edge') or config.vision_config.image_size
        # An image is made larger until its sides are multiples of what a placeholder stands for.
        rows, columns = (math.ceil((size.get(key) or edge) / side) for key in ('height', 'width'))
        height, width = rows * side, columns * side
        ids = ([self.image_token_id] * columns + [ANY_WORD]) * rows
        shapes = lambda size: dict(pixel_values=(size, 3, height, width))  # noqa: E731
        return ImageInput(ids, rows * columns, shapes, dict(image_sizes=[height, width]))

    def _check_sizes(self, batch: dict) -> None:
        """Refuse images that transformers 4 would give positions of other patches."""
        largest = self.model.config.vision_config.image_size
        # The sizes last: reading them waits for the device.
        if (
            batch.get('pixel_values') is None
            or not has_table(self.vision_tower)
            or batch['image_sizes'].max() <= largest
        ):
            return
        height, width = max(batch['image_sizes'].tolist(), key=max)
        raise ValueError(
            f'an image of {height} x {width} pixels is larger than vision_config.image_size={largest}, up to which '
            f'transformers {version("transformers")} has positions: set size=dict(longest_edge={largest}) of the image '
            'processor, or use transformers 5'
        )
