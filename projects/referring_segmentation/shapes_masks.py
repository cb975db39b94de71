"""Drawn shapes with the mask of the one that an expression refers to: data for a CPU, without a download."""

from operator import attrgetter

import numpy as np
from mmengine.registry import DATASETS
from PIL import Image

from mergemix_mm.datasets.drawn_dataset import DrawnDataset
from mergemix_mm.datasets.shapes_drawing import draw_clutter, draw_thing, to_uint8
from mergemix_mm.datasets.shapes_scene import GRID, draw_scene
from mergemix_mm.datasets.shapes_task_fields import grounding
from mergemix_mm.datasets.shapes_tasks import box_around


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
        things, mask = [], None
        for thing in sorted(scene.things, key=attrgetter('cell')):
            drawn = draw_thing(canvas, thing.color, thing.shape, thing.cell, GRID, rng)
            things.append(dict(vars(thing), box=box_around(drawn)))
            mask = drawn if thing.asked else mask
        image = Image.fromarray(to_uint8(canvas))
        return dict(images=[image], size=size, mask=mask, **grounding(things, rng))
