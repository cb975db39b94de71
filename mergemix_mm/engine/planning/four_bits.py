"""Linear layers with weights of 4 bits, for the planning of memory: it needs neither bitsandbytes nor a GPU."""

from typing import Any

import torch
from torch import Tensor, nn

from ...models.vlms.hf.loading import parse_dtype
from ...models.vlms.quantization import linear_layers

# Weights that share one scale, and scales that share one in turn if they are quantized as well.
BLOCK, NESTED_BLOCK = 64, 256


class FourBitLinear(nn.Linear):
    """A linear layer whose weight is packed, two entries in a byte, as bitsandbytes keeps it.

    The scales are one float32 per 64 weights; or one byte per 64 and one float32 per 256 of these. The weight is
    unpacked for each product, in the forward and again in the backward.

    Args:
        linear (nn.Linear): The layer that it stands for.
        dtype (torch.dtype): Of computation.
        nested (bool): Whether the scales are quantized as well.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, nested: bool) -> None:
        super().__init__(1, 1, bias=False)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.compute_dtype, self.bias = dtype, linear.bias
        size = linear.weight.numel()
        blocks = -(-size // BLOCK)
        packed = torch.empty(-(-size // 2), 1, dtype=torch.uint8, device=linear.weight.device)
        self.weight = nn.Parameter(packed, requires_grad=False)
        scales = packed.new_empty(blocks) if nested else packed.new_empty(blocks, dtype=torch.float32)
        self.register_buffer('absmax', scales)
        outer = packed.new_empty(-(-blocks // NESTED_BLOCK) if nested else 0, dtype=torch.float32)
        self.register_buffer('nested_absmax', outer)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the dtype of the input."""
        with torch.autocast(x.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.to(self.compute_dtype)
            shape = self.out_features, self.in_features
            result = _Product.apply(x.to(self.compute_dtype), self.weight, shape)
            return (result if bias is None else result + bias).to(x.dtype)


class _Product(torch.autograd.Function):
    """The product of an input with a weight that is unpacked and not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.shape = shape
        return x @ x.new_empty(shape).t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient @ gradient.new_empty(ctx.shape), None, None


def pack(model: nn.Module, options: dict) -> nn.Module:
    """Replace the layers that ``quantization_config`` quantizes, in place.

    Args:
        model (nn.Module): A model of transformers.
        options (dict): ``quantization_config``.
    """
    dtype = parse_dtype(options.get('bnb_4bit_compute_dtype') or model.dtype)
    nested = bool(options.get('bnb_4bit_use_double_quant'))
    for name in linear_layers(model):
        outer, _, inner = name.rpartition('.')
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)  # GPT-2 is not planned.
        setattr(model.get_submodule(outer), inner, FourBitLinear(layer, dtype, nested))
    return model
