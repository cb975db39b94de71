"""What an image encoder gives, whatever its library: a map of patch tokens, with or without a class token."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from mmengine.utils import to_2tuple
from torch import Tensor, nn

from ..vision_encoders import UnsupportedEncoderError, build_vision_encoder


class _TokenMap(NamedTuple):
    features: Tensor
    class_token: Tensor | None = None


class TokenMap(_TokenMap):
    """Patch tokens as a map.

    Args:
        features (Tensor): [B, C, h, w].
        class_token (Tensor, optional): [B, C], or None where the encoder has none.

    Attributes:
        cell (tuple[float, float], optional): Height and width of a cell of the map in pixels of the image. Defaults to
            None: not known, as behind what copies tuples (FSDP).
    """

    cell: tuple[float, float] | None = None

    def with_cell(self, cell: tuple[float, float]) -> 'TokenMap':
        """The same map, with that cell."""
        token_map = TokenMap(*self)
        token_map.cell = cell
        return token_map


class TokenLayout(NamedTuple):
    """Where the patches are in the tokens [B, L, C] of a vision transformer: behind the others, row by row.

    Args:
        patch_size (tuple[int, int]): Height and width of a patch in pixels.
        num_prefix_tokens (int, optional): Class token, registers and the like; None takes what there is.
        has_class_token (bool): Whether the first of them is a class token.
    """

    patch_size: tuple[int, int]
    num_prefix_tokens: int | None
    has_class_token: bool

    @classmethod
    def of(cls, encoder: nn.Module) -> 'TokenLayout | None':
        """The layout of a vision transformer that `build_vision_encoder` knows; None for others."""
        try:
            parts = build_vision_encoder(encoder)
        except UnsupportedEncoderError:
            return None
        return cls(to_2tuple(parts.patch_size), parts.num_prefix_tokens, parts.has_class_token)

    @classmethod
    def from_config(cls, encoder: nn.Module) -> 'TokenLayout | None':
        """The layout of another vision transformer of transformers; None if its config names no patch size.

        All of them put a class token first if they put anything before the patches.
        """
        patch_size = getattr(getattr(encoder, 'config', None), 'patch_size', None)
        return None if patch_size is None else cls(to_2tuple(patch_size), None, True)

    @property
    def divisor(self) -> int:
        """What height and width of an image that is made of whole patches are a multiple of, in pixels."""
        return math.lcm(*self.patch_size)

    def grid(self, image_size: Sequence[int], divisor: int | None = None) -> tuple[int, int]:
        """Rows and columns of patches of an image.

        Args:
            image_size (Sequence[int]): Height and width in pixels.
            divisor (int, optional): The one that the message names, a multiple of its own. Defaults to None: its own.

        Raises:
            ValueError: If the image is not made of whole patches: libraries would cut or pad the rest.
        """
        (height, width), (rows, columns) = image_size, self.patch_size
        if height % rows or width % columns:
            raise ValueError(
                f'images of {height} x {width} pixels are not a multiple of its {rows} x {columns} patches: set '
                f'input_size of the encoder to a multiple of {self.divisor}, or pad them in the preprocessor, '
                f'data_preprocessor.pad_size_divisor={divisor or self.divisor}'
            )
        return height // rows, width // columns

    def read(self, tokens: Tensor, image_size: Sequence[int], divisor: int | None = None) -> TokenMap:
        """Tokens [B, L, C] of images of that size -> map.

        Raises:
            ValueError: If the tokens are not those of the image's patches.
        """
        rows, columns = self.grid(image_size, divisor)
        prefix = tokens.size(1) - rows * columns
        if prefix < 0 or self.num_prefix_tokens not in (None, prefix):
            raise ValueError(
                f'{tokens.size(1)} tokens for {rows} x {columns} patches and {self.num_prefix_tokens or 0} tokens '
                'before them: this encoder drops or merges patches; MultiBackbone needs one token per patch'
            )
        features = tokens[:, prefix:].transpose(1, 2).unflatten(2, (rows, columns))
        class_token = tokens[:, 0] if self.has_class_token and prefix > 0 else None
        return TokenMap(features, class_token).with_cell(self.patch_size)


def find_cell(image_size: Sequence[int], map_size: Sequence[int]) -> tuple[float, float]:
    """Height and width in pixels of the cells of a map: its stride, of which only the sizes are known.

    Convolutions halve, and round up or down where a size is odd: the power of two that explains both sides. Other maps
    are taken to cover the image exactly.
    """
    height, width = (pixels / cells for pixels, cells in zip(image_size, map_size, strict=True))
    stride = 2 ** round(math.log2(height * width) / 2)
    halved = all(n in (p // stride, -(-p // stride)) for p, n in zip(image_size, map_size, strict=True))
    return (stride, stride) if halved else (height, width)
