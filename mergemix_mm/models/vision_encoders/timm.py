"""Adapters for timm's VisionTransformer (ViT, DeiT, distilled DeiT, register tokens, no class token) and Eva."""

from collections.abc import Sequence
from inspect import signature

import torch
from torch import Tensor, nn

from ...families.vision_encoder import (
    EncoderLayer,
    UnsupportedEncoderError,
    VisionEncoder,
    check_layers,
    rotate,
    split_heads,
)

# Options of timm's constructors that make a model take images of any size.
ANY_SIZE = dict(dynamic_img_size=True, strict_img_size=False)


def check_timm_size(model: nn.Module, image_size: Sequence[int]) -> None:
    """Refuse images of another size than the one that a model of timm was built for, with the options that help.

    Raises:
        ValueError: If the model takes one size only, and this is another one.
    """
    model = model if hasattr(model, 'patch_embed') else getattr(model, 'model', model)  # features_only=True wraps it.
    patch_embed = getattr(model, 'patch_embed', None)
    size = getattr(patch_embed, 'img_size', None)
    if size is None or not getattr(patch_embed, 'strict_img_size', False) or tuple(size) == tuple(image_size):
        return
    (height, width), known = image_size, signature(type(model).__init__).parameters
    any_size = next((f'{option}={value}' for option, value in ANY_SIZE.items() if option in known), None)
    raise ValueError(
        f'images of {height} x {width} pixels, but this `{type(model).__name__}` of timm takes {size[0]} x {size[1]}: '
        f'resize them, or build it with img_size=({height}, {width})' + (f' or {any_size}' if any_size else '')
    )


class TimmLayer(EncoderLayer):
    """`Block`, its attention with or without norms on query, key and output."""

    def query_key_value(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attn = self.module.attn
        qkv = attn.qkv(self.module.norm1(x)).unflatten(-1, (3, attn.num_heads, attn.head_dim))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return attn.q_norm(query), attn.k_norm(key), value

    def add_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        block, attn = self.module, self.module.attn
        return x + block.drop_path1(block.ls1(attn.proj_drop(attn.proj(attn.norm(attended)))))

    def feed_forward(self, x: Tensor) -> Tensor:
        block = self.module
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))

    @property
    def attention_dropout(self) -> float:
        return self.module.attn.attn_drop.p


class TimmEncoder(VisionEncoder):
    """`timm.models.VisionTransformer`."""

    layer_type: type[EncoderLayer] = TimmLayer
    layer_name = 'Block'
    attention_names: tuple[str, ...] = ('Attention',)

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        check_layers(model, model.blocks, self.layer_name, self.attention_names)
        if any(getattr(block.attn, 'gate', None) is not None for block in model.blocks):
            raise UnsupportedEncoderError(model, 'its attention is gated')
        self.layers = [self.layer_type(block) for block in model.blocks]
        self.has_class_token = model.cls_token is not None
        self.num_prefix_tokens = model.num_prefix_tokens
        self.patch_size = model.patch_embed.patch_size
        self.image_size = tuple(model.patch_embed.img_size)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        model = self.model
        check_timm_size(model, images.shape[-2:])
        x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
        return x, model.patch_embed.dynamic_feat_size(images.shape[-2:])

    def finish(self, x: Tensor) -> Tensor:
        return self.model.norm(x)


class EvaLayer(EncoderLayer):
    """`EvaBlock`, its attention with projections in one or three, norms, and fewer heads of keys than of queries."""

    # Sine and cosine of each patch and channel, [..., L', 2 D]. None: absolute positions only.
    rope: Tensor | None = None

    def query_key_value(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attn, x = self.module.attn, self.module.norm1(x)
        query, key, value = self._project(attn, x)
        query, key = attn.q_norm(query), attn.k_norm(key)
        if self.rope is not None:
            # timm repeats the angle of a pair of channels, for either order of the channels.
            half = getattr(attn, 'rotate_half', False)
            sin, cos = (x.chunk(2, dim=-1)[0] if half else x[..., ::2] for x in self.rope.chunk(2, dim=-1))
            query, key = rotate(query, cos, sin, not half), rotate(key, cos, sin, not half)
        if (repeats := query.size(1) // key.size(1)) > 1:
            key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        return query, key, value

    def add_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        block, attn = self.module, self.module.attn
        projected = attn.proj_drop(attn.proj(attn.norm(attended)))
        return x + block.drop_path1(projected if block.gamma_1 is None else block.gamma_1 * projected)

    def feed_forward(self, x: Tensor) -> Tensor:
        block = self.module
        out = block.mlp(block.norm2(x))
        return x + block.drop_path2(out if block.gamma_2 is None else block.gamma_2 * out)

    @property
    def attention_dropout(self) -> float:
        return self.module.attn.attn_drop.p

    def _project(self, attn: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        if attn.qkv is None:
            heads = attn.num_heads, *2 * [getattr(attn, 'num_kv_heads', attn.num_heads)]
            projections = attn.q_proj(x), attn.k_proj(x), attn.v_proj(x)
            return tuple(map(split_heads, projections, heads))
        qkv = attn.qkv(x)
        if getattr(attn, 'q_bias', None) is not None:
            qkv = qkv + torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
        return qkv.unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


class EvaEncoder(TimmEncoder):
    """`timm.models.Eva`: EVA and EVA-02, DINOv3, Perception Encoder. Without rotary positions its tokens can merge."""

    layers: Sequence[EvaLayer]
    layer_type = EvaLayer
    layer_name = 'EvaBlock'
    attention_names = ('EvaAttention', 'AttentionRope')

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.no_merge = 'rotary positions' if model.rope is not None else None

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        model = self.model
        check_timm_size(model, images.shape[-2:])
        x, rope = model._pos_embed(model.patch_embed(images))
        # Positions of mixed frequencies are another for each layer.
        ropes = rope if getattr(model, 'rope_mixed', False) else [rope] * len(self.layers)
        for layer, own in zip(self.layers, ropes, strict=True):
            layer.rope = own
        return model.norm_pre(x), model.patch_embed.dynamic_feat_size(images.shape[-2:])
