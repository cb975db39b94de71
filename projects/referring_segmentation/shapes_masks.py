"""Drawn shapes with the mask of the one that an expression refers to: data for a CPU, without a download."""

from operator import attrgetter

import numpy as np
from mmengine.registry import DATASETS
from PIL import Image

from mergemix_mm.datasets.drawn_dataset import DrawnDataset
from mergemix_mm.datasets.shapes_drawing import draw_clutter, draw_thing, to_uint8
from mergemix_mm.datasets.shapes_scene import GRID, draw_scene


@DATASETS.register_module()
class ReferringShapesDataset(DrawnDataset):
    """The records of ``ShapesTaskDataset('grounding')``, image by image, and the mask of the thing in question.

    A record holds ``images``, ``size``, ``expression``, ``box`` (xyxy in pixels, tight around the mask), ``mask``
    ([H, W] bool, the pixels that the thing covers at least by half) and ``source``.

    Args:
        **kwargs: Those of ``ShapesTaskDataset``, but ``task`` and ``grid``.
    """

    def draw(self, index: int, rng: np.random.Generator) -> dict:
        scene = draw_scene('position', None, self.pairs, rng)
        canvas, size = draw_clutter(self.image_size, rng), (self.image_size, self.image_size)
        for thing in sorted(scene.things, key=attrgetter('cell')):
            drawn = draw_thing(canvas, thing.color, thing.shape, thing.cell, GRID, rng)
            if thing.asked:
                expression, mask = f'the {thing.color} {thing.shape}', drawn
        rows, columns = mask.nonzero()
        box = [int(value) for value in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]
        image = Image.fromarray(to_uint8(canvas))
        return dict(images=[image], size=size, expression=expression, box=box, mask=mask)
