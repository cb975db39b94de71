"""The grounding question, on records whose object has a mask."""

from typing import Any

import numpy as np
from mmengine.registry import TRANSFORMS

from mergemix_mm.datasets import GroundingTask


@TRANSFORMS.register_module()
class ReferringSegmentationTask(GroundingTask):
    """``expression`` -> ``box``, as ``GroundingTask``; samples keep image and ``mask`` for ``SegmentationIoU``.

    ``mask`` of a record is [H, W] bool. Samples get ``image`` (PIL) and ``gt_mask``.

    Args:
        **kwargs: Those of ``GroundingTask``.

    Raises:
        RecordError: As there, or if the mask has another size than the image.
    """

    TASK = 'referring_segmentation'
    FIELDS = ('expression', 'box', 'mask')

    def added(self, record: dict[str, Any]) -> dict[str, Any]:
        fields, mask = super().added(record), np.asarray(record['mask'], dtype=bool)
        if mask.shape != fields['image_size']:
            raise ValueError(f'has a mask of {mask.shape} (height, width), but the image has {fields["image_size"]}')
        return fields | dict(image=record['images'][0], gt_mask=mask)
