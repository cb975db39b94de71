"""What an `ImageClassifier` needs around SPHINX' mixed encoder: a neck after the tokens, and drawn shapes as its data."""

from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.model import BaseModule
from mmengine.registry import MODELS, TRANSFORMS
from torch import Tensor

from mergemix_mm.toy.scenes import COLORS, SHAPES


@MODELS.register_module()
class TokenMean(BaseModule):
    """Tokens [B, N, C] -> the mean of each image's, as heads take it: a tuple of one [B, C]."""

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        return (tokens.mean(dim=1),)


@TRANSFORMS.register_module()
class ShapesToClasses(BaseTransform):
    """A record of ``ShapesTaskDataset('classification')`` -> ``img`` [H, W, 3] uint8 in BGR and ``gt_label``.

    Labels count the 36 pairs of colour and shape, shapes first; 24 of them are in the train split, 12 in val.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        color, shape = results['label'].split()
        image = np.asarray(results['images'][0])[..., ::-1]
        return dict(img=image.copy(), gt_label=COLORS.index(color) * len(SHAPES) + SHAPES.index(shape))
