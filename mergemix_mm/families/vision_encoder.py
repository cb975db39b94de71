"""The parts of a vision transformer for token merging and scoring, under the same names for every library."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UnsupportedEncoderError(TypeError):
    """Raised for an encoder whose tokens cannot be merged or scored."""

    def __init__(self, model: nn.Module, reason: str) -> None:
        super().__init__(
            f'`{type(model).__name__}` cannot score or merge tokens: {reason}. Supported are vision transformers with '
            'global attention: MMPretrain VisionTransformer (DeiT, distilled DeiT, DeiT3, CLIP-ViT, DINOv2, MoCo v3), '
            'transformers CLIP / SigLIP / DINOv2 vision models, timm VisionTransformer; and, without merging, those '
            'with rotary positions: MMPretrain ViTEVA02, transformers DINOv3, timm Eva (EVA-02, DINOv3), the '
            'towers of Qwen-VL, GLM-4V and Pixtral. Score with one of them through MergeMix(encoder=dict(...))'
        )


class EncoderLayer(ABC):
    """The parts of one pre-norm transformer layer, as views on the library's own module.

    The modules keep their mode: in training, dropout and stochastic depth act as in the library.

    Args:
        module (nn.Module): The library's layer.
    """

    # Whether all tokens of an image attend to each other. Other layers (windows) run, but cannot be scored.
    is_global: bool = True

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention over query, key, value [B, H, N, D] -> [B, H, N, D]. Layers with windows override it.

        Args:
            query (Tensor): As :meth:`query_key_value` returns them, like `key` and `value`.
            key (Tensor): See `query`.
            value (Tensor): See `query`.
            mask (Tensor, optional): Broadcastable to [B, H, N, N], added to the logits. Defaults to None.
        """
        dropout = self.attention_dropout if self.module.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)

    @abstractmethod
    def query_key_value(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise and project tokens [B, N, C] -> query, key, value [B, H, N, D] for attention scaled by D**-0.5."""

    @abstractmethod
    def add_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """Project the heads' joint output [B, N, C] and add it to the residual stream x [B, N, C]."""

    @abstractmethod
    def feed_forward(self, x: Tensor) -> Tensor:
        """The whole second residual branch: x [B, N, C] -> x + MLP(norm(x))."""

    @property
    @abstractmethod
    def attention_dropout(self) -> float:
        """Probability of dropping attention weights in training."""


class VisionEncoder(ABC):
    """The parts of a vision transformer, as views on the library's own model, without parameters.

    An encoder with rotary positions also holds those of the images that :meth:`embed` got last: its layers read them.

    Args:
        model (nn.Module): The library's encoder.
    """

    layers: Sequence[EncoderLayer]
    num_prefix_tokens: int
    has_class_token: bool
    patch_size: tuple[int, int]
    # The rows and the columns of patches are multiples of this.
    patch_block: int = 1
    # The size of the images that it was trained on. None: images of any size, which are scored at their own size. Then
    # no tokens merge: the groups of an image have no meaning on another grid.
    image_size: tuple[int, int] | None
    # Why tokens cannot merge, e.g. 'rotary positions'; None if they can. Without merging they can still be scored.
    no_merge: str | None = None

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def patch_grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of the patches of images [B, 3, H, W]."""
        return images.shape[-2] // self.patch_size[0], images.shape[-1] // self.patch_size[1]

    @abstractmethod
    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images [B, 3, H, W] -> tokens [B, L, C] that enter the first layer, and the patch grid (rows, columns).

        Prefix tokens come first, then the patches row by row.
        """

    @abstractmethod
    def finish(self, x: Tensor) -> Tensor:
        """What the library does to the tokens [B, N, C] after the last layer."""


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """[B, N, H * D] -> [B, H, N, D]."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Rotary positions of queries or keys (https://arxiv.org/abs/2104.09864), in float32.

    Args:
        x (Tensor): [..., N, D]. Its last L tokens are patches; those before them have no position and stay.
        cos (Tensor): [..., L, D / 2], of the angle of each pair of channels.
        sin (Tensor): [..., L, D / 2].
        interleaved (bool): Whether channels 2 i and 2 i + 1 are a pair, or i and i + D / 2. Defaults to False.

    Returns:
        Tensor: [..., N, D], in the dtype of `x`.
    """
    prefix, patches = x.tensor_split([x.size(-2) - cos.size(-2)], dim=-2)
    pairs = patches.float().unflatten(-1, (-1, 2) if interleaved else (2, -1))
    dim = -1 if interleaved else -2
    first, second = pairs.unbind(dim)
    turned = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=dim)
    return torch.cat([prefix, turned.flatten(-2).to(x.dtype)], dim=-2)


def check_layers(
    model: nn.Module, layers: Sequence[nn.Module], expected: str, attention: str | Sequence[str] | None = None
) -> None:
    """Refuse a model that has layers other than those an adapter was written for, subclasses included.

    Args:
        model (nn.Module): The model, for the error.
        layers (Sequence[nn.Module]): Its layers.
        expected (str): Name of their class.
        attention (str | Sequence[str], optional): Name or names of the class of their ``attn``, where a library lets
            it be chosen. Defaults to None: not looked at.

    Raises:
        UnsupportedEncoderError: If one of them is of another class.
    """
    attentions = (attention,) if isinstance(attention, str) else attention
    for layer in layers:
        layer = getattr(layer, '_checkpoint_wrapped_module', layer)  # Activation checkpointing wraps layers.
        if type(layer).__name__ != expected:
            raise UnsupportedEncoderError(
                model,
                f'its layers are `{type(layer).__name__}`, not `{expected}`: relative positions, windows, '
                'another order of their parts, or FSDP around each of them',
            )
        if attentions is None:
            continue
        found = type(getattr(layer.attn, '_checkpoint_wrapped_module', layer.attn)).__name__
        if found not in attentions:
            raise UnsupportedEncoderError(
                model,
                f'the attention of its layers is `{found}`, not `{"` or `".join(attentions)}`, and may work in '
                'another way',
            )
