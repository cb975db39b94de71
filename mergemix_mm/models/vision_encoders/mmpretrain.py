"""Adapters for MMPretrain's VisionTransformer, what shares its layers (DeiT, DeiT3, CLIP, DINOv2, MoCo v3), EVA-02."""

from collections.abc import Sequence

import torch
from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor, nn

from ...families.vision_encoder import EncoderLayer, VisionEncoder, check_layers


class MMPretrainLayer(EncoderLayer):
    """`TransformerEncoderLayer`."""

    def query_key_value(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attn = self.module.attn
        qkv = attn.qkv(self.module.ln1(x)).unflatten(-1, (3, attn.num_heads, attn.head_dims))
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)

    def add_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        attn = self.module.attn
        return x + attn.out_drop(attn.gamma1(attn.proj_drop(attn.proj(attended))))

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.module.ffn(self.module.ln2(x), identity=x)

    @property
    def attention_dropout(self) -> float:
        return self.module.attn.attn_drop


class DeiT3Layer(MMPretrainLayer):
    """`DeiT3TransformerEncoderLayer`: MMPretrain runs its first norm before the MLP too and leaves `ln2` unused."""

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.module.ffn(self.module.ln1(x), identity=x)


class MMPretrainEncoder(VisionEncoder):
    """`VisionTransformer` and its subclasses with a class token, a distillation token too, or none.

    Registers (`ToMeVisionTransformer`) stand between these and the patches, without position.
    """

    layer_type: type[EncoderLayer] = MMPretrainLayer
    layer_name, attention_name = 'TransformerEncoderLayer', 'MultiheadAttention'

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        check_layers(model, model.layers, self.layer_name, self.attention_name)
        self.layers = [self.layer_type(layer) for layer in model.layers]
        self.has_class_token = model.cls_token is not None
        self.num_prefix_tokens = model.num_extra_tokens + getattr(model, 'num_registers', 0)
        self.patch_size = model.patch_embed.projection.stride
        self.image_size = tuple(model.img_size)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x, grid = self.model.patch_embed(images)
        x = self._add_position(self._add_prefix(x), grid, self.model.num_extra_tokens)
        return self.model.pre_norm(self._add_registers(self.model.drop_after_pos(x))), grid

    def finish(self, x: Tensor) -> Tensor:
        return self.model.ln1(x) if self.model.final_norm else x

    def _add_prefix(self, x: Tensor) -> Tensor:
        names = ('cls_token', 'dist_token')
        prefix = [token for name in names if (token := getattr(self.model, name, None)) is not None]
        return torch.cat([*(token.expand(x.size(0), -1, -1) for token in prefix), x], dim=1)

    def _add_registers(self, x: Tensor) -> Tensor:
        registers = getattr(self.model, 'register_tokens', None)
        if registers is None:
            return x
        first, patches = x.tensor_split([self.model.num_extra_tokens], dim=1)
        return torch.cat([first, registers.expand(x.size(0), -1, -1), patches], dim=1)

    def _add_position(self, x: Tensor, grid: tuple[int, int], num_prefix_tokens: int) -> Tensor:
        model = self.model
        return x + resize_pos_embed(
            model.pos_embed, model.patch_resolution, grid, model.interpolate_mode, num_extra_tokens=num_prefix_tokens
        )


class DeiT3Encoder(MMPretrainEncoder):
    """`DeiT3`: its position embedding leaves the class token out."""

    layer_type, layer_name = DeiT3Layer, 'DeiT3TransformerEncoderLayer'

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x, grid = self.model.patch_embed(images)
        return self._add_prefix(self.model.drop_after_pos(self._add_position(x, grid, 0))), grid


class EVA02Layer(EncoderLayer):
    """`EVA02EndcoderLayer`: queries and keys of the patches are rotated by their positions in a grid."""

    grid: tuple[int, int]

    def query_key_value(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attn, x = self.module.attn, self.module.norm1(x)
        query, key, value = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        # Attention is scaled by D**-0.5 here, and by an option of the layer in MMPretrain.
        return self._rotate(query) * (attn.scale * attn.head_dims**0.5), self._rotate(key), value

    def _rotate(self, x: Tensor) -> Tensor:
        attn = self.module.attn
        if not attn.rope:
            return x
        prefix, patches = x.tensor_split([int(attn.with_cls_token)], dim=-2)
        return torch.cat((prefix, attn.rope(patches, self.grid)), dim=-2).type_as(x)

    def add_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        attn = self.module.attn
        return x + self.module.drop_path(attn.proj_drop(attn.proj(attended)))

    def feed_forward(self, x: Tensor) -> Tensor:
        return x + self.module.drop_path(self.module.mlp(self.module.norm2(x)))

    @property
    def attention_dropout(self) -> float:
        return self.module.attn.attn_drop.p


class EVA02Encoder(MMPretrainEncoder):
    """`ViTEVA02`: absolute and rotary positions."""

    layers: Sequence[EVA02Layer]
    layer_type = EVA02Layer
    layer_name, attention_name = 'EVA02EndcoderLayer', 'AttentionWithRoPE'
    no_merge = 'rotary positions'

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x, grid = super().embed(images)
        for layer in self.layers:
            layer.grid = grid
        return x, grid
