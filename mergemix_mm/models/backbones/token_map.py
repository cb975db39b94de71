"""What an image encoder gives, whatever its library: a map of patch tokens, with or without a class token."""

from typing import NamedTuple

from mmengine.utils import to_2tuple
from torch import Tensor, nn

from ..vision_encoders import UnsupportedEncoderError, build_vision_encoder


class TokenMap(NamedTuple):
    """Patch tokens as a map.

    Args:
        features (Tensor): [B, C, h, w].
        class_token (Tensor, optional): [B, C], or None where the encoder has none.
    """

    features: Tensor
    class_token: Tensor | None = None


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

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches of an image.

        Raises:
            ValueError: If the image is not made of whole patches: libraries would cut or pad the rest.
        """
        (height, width), (rows, columns) = image_size, self.patch_size
        if height % rows or width % columns:
            raise ValueError(
                f'images of {height} x {width} pixels are not a multiple of its {rows} x {columns} patches: set '
                'input_size of the encoder to a multiple, or resize the images to one'
            )
        return height // rows, width // columns

    def read(self, tokens: Tensor, image_size: tuple[int, int]) -> TokenMap:
        """Tokens [B, L, C] of images of that size -> map.

        Raises:
            ValueError: If the tokens are not those of the image's patches.
        """
        rows, columns = self.grid(image_size)
        prefix = tokens.size(1) - rows * columns
        if prefix < 0 or self.num_prefix_tokens not in (None, prefix):
            raise ValueError(
                f'{tokens.size(1)} tokens for {rows} x {columns} patches and {self.num_prefix_tokens or 0} tokens '
                'before them: this encoder drops or merges patches; MultiBackbone needs one token per patch'
            )
        features = tokens[:, prefix:].transpose(1, 2).unflatten(2, (rows, columns))
        return TokenMap(features, tokens[:, 0] if self.has_class_token and prefix > 0 else None)
