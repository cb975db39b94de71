"""Adapters for the vision towers of the Qwen family and of GLM-4V: rotary positions, images of any size.

The library packs the patches of all images into one sequence, block by block. Here each image is a row, and its patches
lie row by row: attention does not depend on the order of tokens, and positions and windows follow from the grid.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .vision_encoder import EncoderLayer, VisionEncoder, check_layers, rotate


@dataclass(frozen=True)
class GridPositions:
    """Where the patches of an image are. Shapes: L patches, D channels of a head.

    Args:
        grid (tuple[int, int]): Rows and columns.
        cos (Tensor): [L, D / 2] float32, of the angles by which pairs of channels turn: half of the pairs by the row,
            half by the column.
        sin (Tensor): [L, D / 2] float32.
    """

    grid: tuple[int, int]
    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, grid: tuple[int, int], frequencies: Tensor) -> 'GridPositions':
        """The positions of a grid, given the angles [D / 4] of one row or column."""
        steps = [torch.arange(size, device=frequencies.device)[:, None] * frequencies.float() for size in grid]
        rows, columns = steps[0].repeat_interleave(grid[1], dim=0), steps[1].repeat(grid[0], 1)
        angles = torch.cat([rows, columns], dim=1)
        return cls(grid, angles.cos(), angles.sin())


class QwenLayer(EncoderLayer):
    """A block in which all patches of an image attend to each other."""

    # Those of the images that the encoder embedded last.
    positions: GridPositions

    def query_key_value(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attn, cos, sin = self.module.attn, self.positions.cos, self.positions.sin
        projected = attn.qkv(self.module.norm1(x)).unflatten(-1, (3, attn.num_heads, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)
        return rotate(query, cos, sin), rotate(key, cos, sin), value

    def add_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        return x + self.module.attn.proj(attended)

    def feed_forward(self, x: Tensor) -> Tensor:
        return x + self.module.mlp(self.module.norm2(x))

    @property
    def attention_dropout(self) -> float:
        return self.module.attn.attention_dropout


class WindowLayer(QwenLayer):
    """A block whose patches attend within square windows. Those at the right and lower border may be smaller.

    Args:
        module (nn.Module): The library's block.
        side (int): Rows and columns of patches in a window.
    """

    is_global = False

    def __init__(self, module: nn.Module, side: int) -> None:
        super().__init__(module)
        self.side = side

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        assert mask is None  # Only merged tokens bring one.
        grid = self.positions.grid
        parts = [x.unflatten(2, grid) for x in (query, key, value)]
        attended = torch.empty_like(parts[0])
        # Windows of one size in one call: at most four calls.
        for rows, height in self._bands(grid[0]):
            for columns, width in self._bands(grid[1]):
                windows = [_windows(x[:, :, rows, columns], height, width) for x in parts]
                found = super().attend(*(x.flatten(0, 2) for x in windows))
                found = found.unflatten(0, windows[0].shape[:3]).unflatten(-2, (height, width))
                # Image, head, window row, row in the window, window column, column in the window, channel.
                attended[:, :, rows, columns] = found.permute(0, 3, 1, 4, 2, 5, 6).flatten(4, 5).flatten(2, 3)
        return attended.flatten(2, 3)

    def _bands(self, size: int) -> Iterator[tuple[slice, int]]:
        """The rows (or columns) that whole windows cover, and the rest, each with the extent of its windows."""
        whole = size - size % self.side
        if whole:
            yield slice(whole), self.side
        if whole < size:
            yield slice(whole, size), size - whole


class Qwen2VLEncoder(VisionEncoder):
    """`Qwen2VisionTransformerPretrainedModel`: rotary positions only."""

    layers: list[QwenLayer]
    layer_name = 'Qwen2VLVisionBlock'
    has_class_token, num_prefix_tokens, image_size = False, 0, None
    no_merge = 'rotary positions'

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        check_layers(model, model.blocks, self.layer_name)
        self.layers = [self._layer(index, block) for index, block in enumerate(model.blocks)]
        self.patch_size = (model.config.patch_size, model.config.patch_size)
        self.patch_block = model.config.spatial_merge_size

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        grid = self.patch_grid(images)
        # Image, row, column, channel, row and column in the patch. All frames of a still image are equal.
        patches = images.unflatten(3, (grid[1], -1)).unflatten(2, (grid[0], -1)).permute(0, 2, 4, 1, 3, 5)
        patches = patches.unsqueeze(4).expand(-1, -1, -1, -1, self.model.config.temporal_patch_size, -1, -1)
        x = self.model.patch_embed(patches.flatten(0, 2).flatten(1)).unflatten(0, (len(images), -1))
        positions = GridPositions.of(grid, self.model.rotary_pos_emb.inv_freq)
        for layer in self.layers:
            layer.positions = positions
        return self._enter(x, grid), grid

    def finish(self, x: Tensor) -> Tensor:
        return x

    def _layer(self, index: int, block: nn.Module) -> QwenLayer:
        return QwenLayer(block)

    def _enter(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """What the tower does to its embedded patches [B, L, C] before the first block."""
        return x

    def patch_grid(self, images: Tensor) -> tuple[int, int]:
        (height, width), (size, _) = images.shape[-2:], self.patch_size
        block = size * self.patch_block
        if height % block or width % block:
            raise ValueError(
                f'images of {height} x {width} pixels are not a multiple of {block} x {block} pixels, the block of '
                f'patches that `{type(self.model).__name__}` merges into one token: resize or pad them in the pipeline'
            )
        return height // size, width // size


class Qwen2_5_VLEncoder(Qwen2VLEncoder):
    """`Qwen2_5_VisionTransformerPretrainedModel`: windows, except in the blocks ``fullatt_block_indexes``."""

    layer_name = 'Qwen2_5_VLVisionBlock'

    def _layer(self, index: int, block: nn.Module) -> QwenLayer:
        config = self.model.config
        if index in config.fullatt_block_indexes:
            return QwenLayer(block)
        # A window holds whole blocks of merged patches.
        merge = config.spatial_merge_size
        return WindowLayer(block, config.window_size // merge // config.patch_size * merge)


class Qwen3VLEncoder(Qwen2VLEncoder):
    """`Qwen3VLVisionModel`: also a learned position embedding, resized bilinearly from corner to corner."""

    layer_name = 'Qwen3VLVisionBlock'

    def _enter(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return x + _resized(self.model.pos_embed.weight, grid, mode='bilinear', align_corners=True).to(x.dtype)


class Qwen3VLMoeEncoder(Qwen3VLEncoder):
    """`Qwen3VLMoeVisionModel`: the same tower."""

    layer_name = 'Qwen3VLMoeVisionBlock'


class Qwen3_5Encoder(Qwen3VLEncoder):
    """`Qwen3_5VisionModel`: the tower of Qwen3-VL."""

    layer_name = 'Qwen3_5VisionBlock'


class Qwen3_5MoeEncoder(Qwen3VLEncoder):
    """`Qwen3_5MoeVisionModel`: the same tower."""

    layer_name = 'Qwen3_5MoeVisionBlock'


class Glm4vEncoder(Qwen2VLEncoder):
    """`Glm4vVisionModel`: also a norm and a learned position embedding, resized bicubically."""

    layer_name = 'Glm4vVisionBlock'

    def finish(self, x: Tensor) -> Tensor:
        return self.model.post_layernorm(x)

    def _enter(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        learned = _resized(self.model.embeddings.position_embedding.weight, grid, mode='bicubic', align_corners=False)
        return self.model.post_conv_layernorm(x) + learned.to(x.dtype)


class Glm4vMoeEncoder(Glm4vEncoder):
    """`Glm4vMoeVisionModel`: the same tower."""

    layer_name = 'Glm4vMoeVisionBlock'


def _windows(x: Tensor, height: int, width: int) -> Tensor:
    """[B, H, rows, columns, D] -> [B, window rows, window columns, H, height * width, D]."""
    return x.unflatten(3, (-1, width)).unflatten(2, (-1, height)).permute(0, 2, 4, 1, 3, 5, 6).flatten(4, 5)


def _resized(table: Tensor, grid: tuple[int, int], mode: str, align_corners: bool) -> Tensor:
    """A position embedding [side * side, C], interpolated in float32 for another grid -> [L, C]."""
    square = table.float().unflatten(0, (round(len(table) ** 0.5), -1)).permute(2, 0, 1)[None]
    return F.interpolate(square, grid, mode=mode, align_corners=align_corners)[0].flatten(1).t()
