"""RefCOCO, RefCOCO+ and RefCOCOg with the masks of their objects, and the task that asks for a box."""

from typing import Any

import numpy as np
from mmengine.registry import DATASETS, TRANSFORMS

from mergemix_mm.datasets import GroundingTask, RefCOCODataset


@TRANSFORMS.register_module()
class ReferringSegmentationTask(GroundingTask):
    """Asks for the ``box`` of an ``expression`` as ``GroundingTask`` does, and keeps what ``SegmentationIoU`` reads.

    Records have ``mask``, [H, W] bool. Samples get ``image`` (PIL) and ``gt_mask``.

    Args:
        **kwargs: Those of ``GroundingTask``.

    Raises:
        RecordError: As in ``GroundingTask``, or if the sizes of mask and image differ.
    """

    TASK = 'referring_segmentation'
    FIELDS = ('expression', 'box', 'mask')

    def added(self, record: dict[str, Any]) -> dict[str, Any]:
        fields, mask = super().added(record), np.asarray(record['mask'], dtype=bool)
        if mask.shape != fields['image_size']:
            raise ValueError(f'has a mask of {mask.shape} (height, width), but the image has {fields["image_size"]}')
        return fields | dict(image=record['images'][0], gt_mask=mask)


@DATASETS.register_module()
class RefCOCOMaskDataset(RefCOCODataset):
    """RefCOCO, RefCOCO+ and RefCOCOg, whose records have ``mask``, [H, W] bool, for ``ReferringSegmentationTask``.

    Args:
        **kwargs: Those of ``RefCOCODataset``.

    Raises:
        RecordError: As in ``RefCOCODataset``, or if an annotation has no segmentation or its image no size. The error
            names file and ids.
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
    """Draw a segmentation in COCO's format.

    Args:
        segmentation (list | dict): Polygons, ``[[x1, y1, x2, y2, ...], ...]`` in pixels, or a run-length encoding whose
            ``counts`` are a text (compressed) or a list.
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
