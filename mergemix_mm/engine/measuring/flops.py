"""Floating point operations of one image, counted by MMEngine, with the attention products that it leaves out."""

import math
from dataclasses import dataclass
from typing import Any

from mmengine.analysis import FlopAnalyzer
from torch import Tensor, nn


@dataclass(frozen=True)
class Flops:
    """Multiply-adds of a forward pass, each counted as one operation.

    Counted are convolutions, linear layers and the matching of tokens to merge (matrix products), and normalisations
    with 5 operations per number, MMEngine's estimate. Activations, additions, sorting and the gathers and sums that
    merge tokens are not counted.

    Args:
        counted (int): What :func:`mmengine.analysis.get_model_complexity_info` counts.
        attention (int): The two products of scaled dot-product attention, which MMEngine does not know.
    """

    counted: int
    attention: int


def count_flops(model: nn.Module, images: Tensor) -> Flops:
    """Count the operations of ``model(images)``.

    Args:
        model (nn.Module): In evaluation mode.
        images (Tensor): [1, 3, H, W], on the device of the model.
    """
    analyzer = FlopAnalyzer(model, (images,))
    analyzer.set_op_handle('aten::scaled_dot_product_attention', _attention)
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings('none')
    attention = int(analyzer.by_operator().get('scaled_dot_product_attention', 0))
    return Flops(int(analyzer.total()) - attention, attention)


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Query times key, and weights times value; query, key, value [B, H, N, D]."""
    query, key, value = (tensor.type().sizes() for tensor in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
