"""Adapter for timm's VisionTransformer (ViT, DeiT, distilled DeiT, register tokens, no class token)."""

from torch import Tensor, nn

from .base import EncoderLayer, UnsupportedEncoderError, VisionEncoder, check_layers


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
        check_layers(model, model.blocks, 'Block')
        if any(getattr(block.attn, 'gate', None) is not None for block in model.blocks):
            raise UnsupportedEncoderError(model, 'its attention is gated')
        self.layers = [TimmLayer(block) for block in model.blocks]
        self.has_class_token = model.cls_token is not None
        self.num_prefix_tokens = model.num_prefix_tokens
        self.patch_size = model.patch_embed.patch_size
        self.image_size = tuple(model.patch_embed.img_size)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        model = self.model
        x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
        return x, model.patch_embed.dynamic_feat_size(images.shape[-2:])

    def finish(self, x: Tensor) -> Tensor:
        return self.model.norm(x)
