"""LLaVA-OneVision (https://arxiv.org/abs/2408.03326): tiles as in LLaVA-NeXT, scaled down after the tower."""

import math
import re
from dataclasses import replace

from torch import nn

from .llava_next import Layout, LlavaNextFamily


class LlavaOnevisionFamily(LlavaNextFamily):
    """``LlavaOnevisionForConditionalGeneration``: batches of LLaVA-NeXT, and ``batch_num_images``.

    ``batch_num_images`` [samples with images] counts the images of a sample. Only the image of a sample with one image
    is cut into tiles. Several images are each padded to a square and read in one piece: their canvases are these
    squares. Without the key, every image has tiles, as in the library.

    The joined features of tiles are scaled down to about as many tokens as ``vision_aspect_ratio`` allows: nine tiles
    for ``'anyres_max_9'``.
    """

    model_types = ('llava_onevision',)
    processors = ('LlavaOnevisionProcessor',)
    chat_template = 'llava_onevision'
    array_image_processors = ('LlavaOnevisionImageProcessor',)
    tiles_single_images = True
    forward_keys = (*LlavaNextFamily.forward_keys, 'batch_num_images')

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        config = model.config
        found = re.fullmatch(r'anyres_max_([1-9]\d*)', str(config.vision_aspect_ratio))
        if found is None:
            raise ValueError(
                f'vision_aspect_ratio={config.vision_aspect_ratio!r} of a LLaVA-OneVision model is not supported; '
                "allowed is 'anyres_max_' with a number, such as 'anyres_max_9'"
            )
        if config.vision_feature_select_strategy != 'full':
            raise ValueError(
                f'vision_feature_select_strategy={config.vision_feature_select_strategy!r} of a LLaVA-OneVision model '
                "would drop a patch, because its tower has no class token; allowed is 'full'"
            )
        self.max_tiles = int(found[1])

    def _layouts(self, batch: dict) -> list[Layout]:
        layouts, counts = super()._layouts(batch), batch.get('batch_num_images')
        if not layouts or counts is None:
            return layouts
        single = [count == 1 for count in counts.tolist() for _ in range(count)]
        if len(single) != len(layouts):
            raise ValueError(
                f'batch_num_images={counts.tolist()} counts {len(single)} images, and pixel_values hold '
                f'{len(layouts)}: texts and images of a batch must come from one call of the processor'
            )
        whole = Layout((1, 1), (slice(None), slice(None)), self._num_base, 1, 0, has_thumbnail=False)
        return [layout if one else whole for layout, one in zip(layouts, single)]

    def _layout(self, height: int, width: int) -> Layout:
        layout = super()._layout(height, width)
        rows, columns = layout.num_rows, layout.num_columns
        # The counts of the library must be met to the token. It leaves features alone that are a little too many.
        ratio = math.sqrt(rows * columns / (self.max_tiles * self._num_base))
        if ratio > 1.1:
            return replace(layout, num_rows=int(rows // ratio), num_columns=int(columns // ratio))
        return layout

    @property
    def _num_base(self) -> int:
        return self._side**2  # The tower has no class token.

    def _planned_sizes(self) -> list[list[int]]:
        """Those of the grids, and each of them less tall or wide by some rows or columns of tokens.

        Features that are just few enough not to be scaled down are more than those of any whole grid.
        """
        config = self.model.config
        tile, side = config.vision_config.image_size, self._side
        sizes = []
        for height, width in config.image_grid_pinpoints:
            sizes += [[height, -(-count * tile // side)] for count in range(1, width // tile * side + 1)]
            sizes += [[-(-count * tile // side), width] for count in range(1, height // tile * side + 1)]
        return sizes

    def _weight(self, layout: Layout) -> int:
        """Tokens of the language model and, if the tower trains, those of the tower, times width and depth of each.

        Grids of more tiles are scaled down to fewer tokens, so that no image has most of both.
        """
        text, vision = self.model.config.text_config, self.model.config.vision_config
        weight = len(layout) * text.hidden_size * text.num_hidden_layers
        if any(weights.requires_grad for weights in self.vision_tower.parameters()):
            weight += layout.num_views * self._num_base * vision.hidden_size * vision.num_hidden_layers
        return weight
