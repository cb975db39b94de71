"""Text-to-image on drawn shapes: prompts that name a colour, a shape and a place, and images that show it."""

from collections.abc import Sequence

import numpy as np
from mmengine.registry import DATASETS
from PIL import Image

from .drawn_dataset import DrawnDataset
from .shapes_drawing import PALETTE, draw_clutter, draw_thing, to_uint8
from .shapes_scene import COLUMNS, GENERATION_TEMPLATES, GRID

PLAIN = 0.25  # Grey of a background without clutter, in [0, 1].


@DATASETS.register_module()
class ShapesGenerationDataset(DrawnDataset):
    """One prompt ('draw a red ring on the left') and one image of that thing per index.

    The thing stands in one of the three rows of the column that the prompt names, with a random size, place and
    brightness. Train and val hold different colour-shape pairs, as in :class:`ShapesConversationDataset`. Index i is
    always the same record for one split, seed and set of arguments.

    A record holds ``prompt``, ``images`` (one RGB image), ``source``, and what :class:`ShapesGenerationMetric` reads
    back from generated pixels: ``gt_color`` and ``gt_position`` (``'left'``, ``'center'``, ``'right'``); also
    ``gt_shape``.

    Args:
        split (str): ``'train'`` or ``'val'``. Defaults to ``'train'``.
        length (int): Number of records, >= 1. Defaults to 10000.
        image_size (int): Height and width in pixels, >= 24. Defaults to 48.
        clutter (bool): Whether the background is that of :class:`ShapesConversationDataset`; otherwise it is grey,
            and easy to draw. Defaults to False.
        seed (int): Of all draws, >= 0; numpy's global state plays no part. Defaults to 0.
        pipeline (Sequence): Transforms that turn a record into a sample. Defaults to an empty tuple.

    Raises:
        ValueError: If an argument is outside its range.

    Examples:
        >>> record = ShapesGenerationDataset(split='val')[0]
        >>> record['prompt'], record['gt_color'], record['gt_position']
    """

    METAINFO = dict(palette=PALETTE, columns=COLUMNS)

    def __init__(
        self,
        split: str = 'train',
        length: int = 10000,
        image_size: int = 48,
        clutter: bool = False,
        seed: int = 0,
        pipeline: Sequence = (),
    ) -> None:
        super().__init__(split, length, image_size, seed, pipeline)
        self.clutter = clutter

    def draw(self, index: int, rng: np.random.Generator) -> dict:
        color, shape = self.pairs[rng.integers(len(self.pairs))]
        row, column = rng.integers(GRID, size=2).tolist()
        size = self.image_size
        canvas = draw_clutter(size, rng) if self.clutter else np.full((size, size, 3), PLAIN, np.float32)
        draw_thing(canvas, color, shape, (row, column), GRID, rng)
        return dict(
            prompt=GENERATION_TEMPLATES[COLUMNS[column]].format(color=color, shape=shape),
            images=[Image.fromarray(to_uint8(canvas))],
            gt_color=color,
            gt_shape=shape,
            gt_position=COLUMNS[column],
        )
