"""Qwen2.5-VL (https://arxiv.org/abs/2502.13923) and Qwen2-VL: flattened patches of images of any size."""

import math
import warnings
from collections.abc import Callable
from inspect import signature
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .base import Family, ImageInput
from .layout import mark_frames
from .qwen_towers import Qwen2_5_VLEncoder, Qwen2VLEncoder
from .vision_encoder import VisionEncoder


class Qwen2_5_VLFamily(Family):
    """``Qwen2_5_VLForConditionalGeneration``: ``pixel_values`` [patches of all images, 3 * frames * p * p].

    ``image_grid_thw`` [N, 3] counts patches. The patches of an image are ordered block by block, because each
    block is merged into one token. The frames of a patch are copies of the still image.
    """

    model_types: ClassVar[tuple[str, ...]] = ('qwen2_5_vl', 'qwen2_vl')
    processors: ClassVar[tuple[str, ...]] = ('Qwen2_5_VLProcessor', 'Qwen2VLProcessor')
    chat_template = 'qwen2_5_vl'
    token_padding = Family.token_padding | dict(mm_token_type_ids=0)
    image_frame = ('<|vision_start|>', '<|vision_end|>')
    parts = dict(
        vision_tower=('model.visual',),
        projector=('model.visual.merger',),
        language_model=('model.language_model', 'lm_head'),
    )
    forward_keys = ('input_ids', 'attention_mask', 'pixel_values', 'image_grid_thw')
    pixel_shape = ('patches', 'values')
    tower_adapters: ClassVar[dict[str, Callable[[nn.Module], VisionEncoder]]] = {
        'transformers.models.qwen2_vl.modeling_qwen2_vl.Qwen2VisionTransformerPretrainedModel': Qwen2VLEncoder,
        'transformers.models.qwen2_5_vl.modeling_qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel': (
            Qwen2_5_VLEncoder
        ),
    }
    # Of the config: the tokens that frame an image.
    frame_keys: ClassVar[tuple[str, str]] = ('vision_start_token_id', 'vision_end_token_id')

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        if getattr(model.config.get_text_config(), 'output_router_logits', False):
            warnings.warn(
                'text_config.output_router_logits=True asks for the loss that balances experts, which is not computed: '
                'the losses are those of answers',
                stacklevel=2,
            )

    def image_lengths(self, batch: dict) -> Tensor:
        if self.pixels(batch) is None:
            return batch['input_ids'].new_zeros(0)
        merge = self.model.config.vision_config.spatial_merge_size
        return batch['image_grid_thw'].prod(dim=1) // merge**2

    def modality(self, batch: dict) -> Tensor:
        return mark_frames(super().modality(batch))

    def model_kwargs(self, batch: dict) -> dict:
        """As in the base class, with the tokens of images marked: transformers 5 gives others the positions of text."""
        kwargs = super().model_kwargs(batch)
        if 'mm_token_type_ids' in signature(self.base.forward).parameters:
            kwargs['mm_token_type_ids'] = self.placeholders(batch).int()
        return kwargs

    def positions(self, inputs: dict) -> Tensor:
        """With images, [3, B, L]: in time, row and column."""
        if inputs.get('image_grid_thw') is None:
            return super().positions(inputs)
        find: Any = self.base.get_rope_index
        keys = ('input_ids', 'image_grid_thw', 'attention_mask', 'mm_token_type_ids')
        return find(**{key: inputs[key] for key in keys if key in inputs})[0]

    def canvases(self, batch: dict) -> list[Tensor]:
        pixels = self.pixels(batch)
        if pixels is None:
            return []
        grids = batch['image_grid_thw'].tolist()
        patches = pixels.split([frames * rows * cols for frames, rows, cols in grids])
        return [self._unpatch(*sample) for sample in zip(patches, grids, strict=True)]

    def with_canvases(self, batch: dict, canvases: list[Tensor]) -> dict:
        self.check_canvases(canvases, batch)
        if not canvases:
            return dict(batch)
        return {**batch, 'pixel_values': torch.cat([self._patch(canvas) for canvas in canvases])}

    def largest_image(self, processor: dict) -> ImageInput:
        config = self.model.config
        vision = config.vision_config
        side = vision.patch_size * vision.spatial_merge_size
        rows, columns = _most_square(self._most_pixels(processor, side) // side**2)
        grid = [1, rows * vision.spatial_merge_size, columns * vision.spatial_merge_size]
        start, end = (getattr(config, key) for key in self.frame_keys)
        ids = [start, *[config.image_token_id] * (rows * columns), end]
        width = 3 * vision.temporal_patch_size * vision.patch_size**2
        shapes = lambda size: dict(pixel_values=(size * math.prod(grid), width))  # noqa: E731
        return ImageInput(ids, rows * columns, shapes, dict(image_grid_thw=grid))

    def _most_pixels(self, processor: dict, side: int) -> int:
        """The largest area that the processor keeps; `side` is that of an image token, in pixels."""
        size = processor.get('size') or {}
        return processor.get('max_pixels') or size.get('longest_edge') or 16384 * side**2

    def _unpatch(self, patches: Tensor, grid: list[int]) -> Tensor:
        config = self.model.config.vision_config
        size, merge, (_, rows, cols) = config.patch_size, config.spatial_merge_size, grid
        # Block row, block column, row and column in the block, channel, frame, pixel row and column.
        patches = patches.reshape(rows // merge, cols // merge, merge, merge, 3, -1, size, size)[:, :, :, :, :, 0]
        return patches.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * size, cols * size)

    def _patch(self, canvas: Tensor) -> Tensor:
        config = self.model.config.vision_config
        size, merge, frames = config.patch_size, config.spatial_merge_size, config.temporal_patch_size
        # The same order as in `_unpatch`, with the frames as an expanded axis, which copies nothing here.
        blocks = canvas.unflatten(2, (-1, merge, size)).unflatten(1, (-1, merge, size)).permute(1, 4, 2, 5, 0, 3, 6)
        return blocks.unsqueeze(5).expand(*blocks.shape[:5], frames, size, size).flatten(0, 3).flatten(1)


def _most_square(area: int) -> tuple[int, int]:
    """Rows and columns of the largest grid of at most `area` cells and at most twice as wide as high."""
    grids = [(rows, area // rows) for rows in range(max(math.isqrt(area // 2), 1), math.isqrt(area) + 1)]
    return max(grids, key=lambda grid: (math.prod(grid), grid[0]))
