"""Drawn shapes as the classifiers of MMPretrain read them."""

from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

from mergemix_mm.toy.scenes import COLORS, SHAPES


@TRANSFORMS.register_module()
class ShapesToClasses(BaseTransform):
    """Turns a record of ``ShapesTaskDataset('classification')`` into ``img``, [H, W, 3] uint8 in BGR, and ``gt_label``.

    Labels number the 36 pairs of colour and shape, colour by colour. 24 of them are in the train split, 12 in val.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        color, shape = results['label'].split()
        image = np.asarray(results['images'][0])[..., ::-1]
        return dict(img=image.copy(), gt_label=COLORS.index(color) * len(SHAPES) + SHAPES.index(shape))
