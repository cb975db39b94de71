"""Records with the mask of what an expression refers to, from RefCOCO and drawn, and the task that asks for it."""

from typing import Any

import numpy as np
from mmengine.registry import DATASETS, TRANSFORMS

from mergemix_mm.datasets import GroundingTask, RefCOCODataset
from mergemix_mm.toy.drawn_dataset import DrawnDataset
from mergemix_mm.toy.shapes_scene import GRID, draw_scene
from mergemix_mm.toy.shapes_task_fields import grounding
from mergemix_mm.toy.shapes_tasks import draw_things


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
        image, things, masks = draw_things(scene.things, self.image_size, GRID, rng)
        (mask,) = (mask for mask, thing in zip(masks, things, strict=True) if thing['asked'])
        return dict(images=[image], size=(self.image_size, self.image_size), mask=mask, **grounding(things, rng))
