"""The output of an image encoder of any library: a map of patch tokens, with or without a class token."""

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
            None: not known. Wrappers that copy tuples lose it.
    """

    cell: tuple[float, float] | None = None

    def with_cell(self, cell: tuple[float, float]) -> 'TokenMap':
        """A copy of the map that knows its cell."""
        token_map = TokenMap(*self)
        token_map.cell = cell
        return token_map


class TokenLayout(NamedTuple):
    """Where the patches are in the tokens [B, L, C] of a vision transformer: after all others, row by row.

    Args:
        patch_size (tuple[int, int]): Height and width of a patch in pixels.
        num_prefix_tokens (int, optional): Number of tokens before the patches (class token, registers); None: not
            known, so whatever precedes the patches is skipped.
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

        All of these models begin with a class token if they have any tokens before the patches.
        """
        patch_size = getattr(getattr(encoder, 'config', None), 'patch_size', None)
        return None if patch_size is None else cls(to_2tuple(patch_size), None, True)

    @property
    def divisor(self) -> int:
        """What both sides of an image have to be multiples of, in pixels, to consist of whole patches."""
        return math.lcm(*self.patch_size)

    def patch_grid(self, image_size: Sequence[int], divisor: int | None = None) -> tuple[int, int]:
        """Rows and columns of patches of an image.

        Args:
            image_size (Sequence[int]): Height and width in pixels.
            divisor (int, optional): The divisor that the message recommends, a multiple of :attr:`divisor`. Defaults
                to None: :attr:`divisor`.

        Raises:
            ValueError: If the image does not consist of whole patches: libraries would cut or pad the rest.
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
        """Tokens [B, L, C] of images of a size in pixels -> map.

        Raises:
            ValueError: If the tokens are not those of the image's patches.
        """
        rows, columns = self.patch_grid(image_size, divisor)
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
    """Height and width in pixels of the cells of a map, its stride, from the sizes of image and map.

    Convolutions halve a size, and round up or down where it is odd: the stride is the power of two that explains both
    sides. If there is none, the map is taken to cover the image exactly.
    """
    height, width = (pixels / cells for pixels, cells in zip(image_size, map_size, strict=True))
    stride = 2 ** round(math.log2(height * width) / 2)
    halved = all(n in (p // stride, -(-p // stride)) for p, n in zip(image_size, map_size, strict=True))
    return (stride, stride) if halved else (height, width)
