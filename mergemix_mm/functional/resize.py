"""The one way in which images and maps are resized: bilinear, with antialias."""

import torch.nn.functional as F
from torch import Tensor


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Images or maps ``[B, C, h, w]`` -> ``[B, C, *size]``.

    Interpolated in float32, since not every device does so in half precision with antialias, and returned in the dtype
    of `x`; `x` itself, not a copy, if it has the size.
    """
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x.float(), size=size, mode='bilinear', antialias=True).to(x.dtype)
