"""Adapter for timm's VisionTransformer (ViT, DeiT, distilled DeiT, register tokens, no class token)."""

from collections.abc import Sequence
from inspect import signature

from torch import Tensor, nn

from ...families.vision_encoder import EncoderLayer, UnsupportedEncoderError, VisionEncoder, check_layers

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

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        check_layers(model, model.blocks, 'Block', attention='Attention')
        if any(getattr(block.attn, 'gate', None) is not None for block in model.blocks):
            raise UnsupportedEncoderError(model, 'its attention is gated')
        self.layers = [TimmLayer(block) for block in model.blocks]
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
