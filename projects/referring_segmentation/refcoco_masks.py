"""RefCOCO, RefCOCO+ and RefCOCOg with the masks of their objects."""

from typing import Any

import numpy as np
from mmengine.registry import DATASETS

from mergemix_mm.datasets import RefCOCODataset


@DATASETS.register_module()
class RefCOCOMaskDataset(RefCOCODataset):
    """``RefCOCODataset`` whose records have ``mask``, [H, W] bool, for ``ReferringSegmentationTask``.

    Args:
        **kwargs: Those of ``RefCOCODataset``.

    Raises:
        RecordError: As there, or if an annotation has no segmentation or its image no size; names file and ids.
        ImportError: If pycocotools is missing.
    """

    def load_record(self, index: int) -> dict[str, Any]:
        record = super().load_record(index)
        annotation = self.coco.annotations[int(self.places[self.records[index][0]])]
        if not annotation.get('segmentation') or 'size' not in record:
            raise ValueError(
                f'annotation {annotation["id"]}: needs its segmentation, and its image height and width; take the '
                'instances.json that comes with the references'
            )
        return record | dict(mask=decode_segmentation(annotation['segmentation'], record['size']))


def decode_segmentation(segmentation: list | dict, size: tuple[int, int]) -> np.ndarray:
    """Draw a segmentation of COCO.

    Args:
        segmentation (list | dict): Polygons, ``[[x1, y1, x2, y2, ...], ...]`` in pixels, or a run-length encoding with
            ``counts``, compressed (text) or not (list).
        size (tuple[int, int]): Height and width of the image.

    Returns:
        np.ndarray: [H, W] bool.

    Raises:
        ImportError: If pycocotools is missing.
    """
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise ImportError(
            'RefCOCOMaskDataset: pycocotools, which draws the masks, is missing; run `pip install pycocotools`.'
        ) from error
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
    elif isinstance(segmentation['counts'], list):
        segmentation = coco_mask.frPyObjects(segmentation, *size)
    return coco_mask.decode(segmentation).astype(bool)
