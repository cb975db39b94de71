"""Drawn shapes with the mask of the one that an expression refers to, for a CPU and without a download."""

import numpy as np
from mmengine.registry import DATASETS

from mergemix_mm.toy.conversations import DrawnDataset
from mergemix_mm.toy.scenes import GRID, draw_scene
from mergemix_mm.toy.tasks import draw_things, grounding


@DATASETS.register_module()
class ReferringShapesDataset(DrawnDataset):
    """The records of ``ShapesTaskDataset('grounding')`` with the mask of the thing that the expression refers to.

    A record holds ``images``, ``size``, ``expression``, ``box`` (xyxy in pixels, tight around the mask), ``mask``
    ([H, W] bool, the pixels that the thing covers at least by half) and ``source``.

    Args:
        **kwargs: Those of ``ShapesTaskDataset``, except ``task`` and ``grid``.
    """

    def draw(self, index: int, rng: np.random.Generator) -> dict:
        scene = draw_scene('position', None, self.pairs, rng)
        image, things, masks = draw_things(scene.things, self.image_size, GRID, rng)
        (mask,) = (mask for mask, thing in zip(masks, things, strict=True) if thing['asked'])
        return dict(images=[image], size=(self.image_size, self.image_size), mask=mask, **grounding(things, rng))
