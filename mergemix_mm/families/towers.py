"""Adapters for vision models of transformers: CLIP, SigLIP, DINOv2, DINOv3. Families derive theirs from them."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .vision_encoder import EncoderLayer, VisionEncoder, check_layers, rotate, split_heads


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


class CLIPLayer(EncoderLayer):
    """`CLIPEncoderLayer` and `SiglipEncoderLayer`."""

    def query_key_value(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attn, x = self.module.self_attn, self.module.layer_norm1(x)
        projections = attn.q_proj(x), attn.k_proj(x), attn.v_proj(x)
        query, key, value = (split_heads(projection, attn.num_heads) for projection in projections)
        return query, key, value

    def add_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        return x + self.module.self_attn.out_proj(attended)

    def feed_forward(self, x: Tensor) -> Tensor:
        return x + self.module.mlp(self.module.layer_norm2(x))

    @property
    def attention_dropout(self) -> float:
        return self.module.self_attn.dropout


class CLIPEncoder(VisionEncoder):
    """`CLIPVisionTransformer`: class token first, no final norm on the tokens."""

    layer_type: type[EncoderLayer] = CLIPLayer
    layer_name = 'CLIPEncoderLayer'
    has_class_token, num_prefix_tokens = True, 1

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        layers = self._layers()
        check_layers(model, layers, self.layer_name)
        self.layers = [self.layer_type(layer) for layer in layers]
        self.patch_size, self.image_size = _pair(model.config.patch_size), _pair(model.config.image_size)

    def _layers(self) -> Sequence[nn.Module]:
        return self.model.encoder.layers

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        return self._enter(self._embeddings(images)), self.patch_grid(images)

    def finish(self, x: Tensor) -> Tensor:
        return x

    def _embeddings(self, images: Tensor) -> Tensor:
        # At the trained size, interpolation would change nothing and take time.
        resized = tuple(images.shape[-2:]) != self.image_size
        return self.model.embeddings(images, interpolate_pos_encoding=resized)

    def _enter(self, x: Tensor) -> Tensor:
        # Spelt like this by the library.
        return self.model.pre_layrnorm(x)


class SiglipEncoder(CLIPEncoder):
    """`SiglipVisionTransformer`: patches only."""

    layer_name = 'SiglipEncoderLayer'
    has_class_token, num_prefix_tokens = False, 0

    def finish(self, x: Tensor) -> Tensor:
        return self.model.post_layernorm(x)

    def _enter(self, x: Tensor) -> Tensor:
        return x


class Dinov2Layer(EncoderLayer):
    """`Dinov2Layer`: layer scale and stochastic depth on both branches."""

    num_heads_name = 'num_attention_heads'

    def query_key_value(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attn, x = self._attention, self.module.norm1(x)
        names = ('q_proj', 'k_proj', 'v_proj') if hasattr(attn, 'q_proj') else ('query', 'key', 'value')
        num_heads = getattr(attn, self.num_heads_name)
        query, key, value = (split_heads(getattr(attn, name)(x), num_heads) for name in names)
        return query, key, value

    def add_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        layer, attn = self.module, self.module.attention
        projected = attn.o_proj(attended) if hasattr(attn, 'o_proj') else attn.output(attended, x)
        return x + layer.drop_path(layer.layer_scale1(projected))

    def feed_forward(self, x: Tensor) -> Tensor:
        layer = self.module
        return x + layer.drop_path(layer.layer_scale2(layer.mlp(layer.norm2(x))))

    @property
    def attention_dropout(self) -> float:
        attn = self._attention
        return attn.attention_dropout if hasattr(attn, 'attention_dropout') else attn.dropout_prob

    @property
    def _attention(self) -> Any:
        """The module with the projections. In transformers 4, it is inside another one."""
        return getattr(self.module.attention, 'attention', self.module.attention)


class Dinov2Encoder(CLIPEncoder):
    """`Dinov2Model`: always interpolates its position embedding itself."""

    layer_type: type[EncoderLayer] = Dinov2Layer
    layer_name = 'Dinov2Layer'

    def _layers(self) -> Sequence[nn.Module]:
        return self.model.encoder.layer

    def finish(self, x: Tensor) -> Tensor:
        return self.model.layernorm(x)

    def _embeddings(self, images: Tensor) -> Tensor:
        return self.model.embeddings(images)

    def _enter(self, x: Tensor) -> Tensor:
        return x


class Dinov2WithRegistersEncoder(Dinov2Encoder):
    """`Dinov2WithRegistersModel`: register tokens between class token and patches, without position."""

    layer_name = 'Dinov2WithRegistersLayer'

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.num_prefix_tokens = 1 + model.config.num_register_tokens


class DINOv3Layer(Dinov2Layer):
    """`DINOv3ViTLayer`: queries and keys of the patches are rotated by their positions."""

    # Cosine and sine of the patches of the images that the encoder embedded last, [L', D / 2].
    positions: tuple[Tensor, Tensor]
    num_heads_name = 'num_heads'

    def query_key_value(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = super().query_key_value(x)
        return rotate(query, *self.positions), rotate(key, *self.positions), value

    @property
    def attention_dropout(self) -> float:
        return self.module.attention.dropout


class DINOv3Encoder(Dinov2WithRegistersEncoder):
    """`DINOv3ViTModel`: its only positions are the rotary ones."""

    layers: Sequence[DINOv3Layer]
    layer_type, layer_name = DINOv3Layer, 'DINOv3ViTLayer'
    no_merge = 'rotary positions'

    def _layers(self) -> Sequence[nn.Module]:
        # In transformers 5, the layers are inside another module.
        return getattr(self.model, 'model', self.model).layer

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        # The library repeats the angle of a pair of channels.
        cos, sin = (x.chunk(2, dim=-1)[0] for x in self.model.rope_embeddings(images))
        for layer in self.layers:
            layer.positions = cos, sin
        return super().embed(images)

    def finish(self, x: Tensor) -> Tensor:
        return self.model.norm(x)
