"""Detection, key points, captions and document layout from files in COCO's layout, as structured records."""

import os
from typing import Any

import numpy as np
from mmengine.registry import DATASETS

from ..utils.text import quoted
from .base import RecordDataset
from .io.coco_file import CocoFile
from .io.fields import check_keys

KINDS = ('detection', 'layout', 'keypoints', 'captions')
# Characters of a box with its separator in an answer, such as [0.123,0.456,0.789,0.987];
BOX_LENGTH = 26


@DATASETS.register_module()
class COCOTaskDataset(RecordDataset):
    """Records for the task transforms, from the annotation files of COCO, PubLayNet, DocLayNet and their like.

    What a record is, and what it holds beside ``images``, ``size`` (height and width) and ``image_id``:

    ============= =================================================================================================
    ``detection`` one category on one image: ``label``, ``category_id`` and ``boxes`` [n, 4], for ``DetectionTask``
    ``layout``    one image: ``labels`` [n] and ``boxes`` [n, 4], for ``LayoutTask``
    ``keypoints`` one person: ``box`` [4], ``keypoints`` [n, 2], those that are annotated, and ``keypoint_names``
                  [n], for ``PoseTask``
    ``captions``  one caption: ``caption``, for ``CaptionTask``
    ============= =================================================================================================

    Coordinates are xyxy and xy in pixels. Crowds and persons without key points are left out. The file is read
    lazily and may be larger than the memory.

    Args:
        ann_file (str): Such as ``'annotations/instances_train2017.json'``, relative to ``data_root``.
        kind (str): One of the above. Defaults to ``'detection'``.
        **kwargs: Further arguments of :class:`RecordDataset`; ``data_prefix=dict(img_path='train2017')``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If ``kind`` is unknown, or the file is not in COCO's layout or has no such annotation.
        RecordError: If an annotation lacks a key, a box or a key point is outside its image by a pixel or more, a box
            has no width or height, or the image cannot be read; names file, image and annotation.

    Examples:
        >>> dataset = COCOTaskDataset('annotations/instances_val2017.json', data_root='data/coco',
        ...                           data_prefix=dict(img_path='val2017'), pipeline=[dict(type='DetectionTask')])
        >>> dataset[0]['messages'][0]['content'][1]['text']
        'Detect all person shown in the image.'
    """

    def __init__(self, ann_file: str, kind: str = 'detection', **kwargs) -> None:
        if kind not in KINDS:
            raise ValueError(f'COCOTaskDataset: kind={kind!r} is unknown; use one of {", ".join(KINDS)}.')
        self.ann_file = ann_file
        self.kind = kind
        super().__init__(**kwargs)
        if kind != 'captions':
            self.metainfo.setdefault('classes', [category['name'] for category in self.coco.categories.values()])

    def open_records(self) -> range:
        path = os.path.join(self.data_root, self.ann_file)
        self.coco = CocoFile(path, keep=_has_keypoints if self.kind == 'keypoints' else _is_no_crowd)
        kept = self.coco.kept
        keys = np.stack([self.coco.image_places[kept], self.coco.category_ids[kept], kept])
        # The rows of `keys` that tell one record from another: image and category, the image, or the annotation.
        keys = dict(detection=keys[:2], layout=keys[:1]).get(self.kind, keys[2:])
        # lexsort takes the most important key last.
        order = np.lexsort(keys[::-1])
        changes = (np.diff(keys[:, order]) != 0).any(0)
        # Record i holds the annotations members[starts[i]:starts[i + 1]]: two arrays need less memory than N lists.
        self.members = kept[order]
        # Without the special case, no annotation at all would make one empty record.
        self.starts = np.flatnonzero(np.r_[True, changes, True]) if len(kept) else np.zeros(1, np.int64)
        return range(len(self.starts) - 1)

    def source(self, index: int) -> str:
        first = self.members[self.starts[index]]
        if self.kind in ('keypoints', 'captions'):
            return f'{self.coco.path}: annotation {self.coco.ids[first]}'
        image = f'{self.coco.path}: image {self.coco.images[int(self.coco.image_places[first])]["id"]}'
        return f'{image}, category {self.coco.category_ids[first]}' if self.kind == 'detection' else image

    @property
    def lengths(self) -> np.ndarray:
        """The bytes of captions; for the other kinds, what the boxes of a record take."""
        if self.kind == 'captions':
            return self.coco.annotations.lengths[self.members]
        return np.diff(self.starts) * BOX_LENGTH

    def load_record(self, index: int) -> dict[str, Any]:
        members = self.members[self.starts[index] : self.starts[index + 1]].tolist()
        annotations = [self.coco.annotations[place] for place in members]
        fields = self.coco.image_fields(members[0])
        return fields | getattr(self, f'_{self.kind}')(annotations, fields.get('size'))

    def _detection(self, annotations: list[dict], size: tuple[int, int] | None) -> dict:
        category = self.coco.category(annotations[0])
        boxes = self.coco.boxes(annotations, size)
        return dict(label=category['name'], category_id=category['id'], boxes=boxes)

    def _layout(self, annotations: list[dict], size: tuple[int, int] | None) -> dict:
        labels = [self.coco.category(annotation)['name'] for annotation in annotations]
        return dict(labels=labels, boxes=self.coco.boxes(annotations, size))

    def _keypoints(self, annotations: list[dict], size: tuple[int, int] | None) -> dict:
        (person,) = annotations
        category = self.coco.category(person)
        check_keys(category, {'keypoints'})
        names, points = category['keypoints'], person['keypoints']
        if len(points) != 3 * len(names):
            raise ValueError(f'{len(points)} numbers must be x, y and visibility of {len(names)} key points')
        # Visibility 0 means that the point is not annotated; its coordinates are 0 then.
        found = [(name, points[3 * i : 3 * i + 2]) for i, name in enumerate(names) if points[3 * i + 2] > 0]
        return dict(
            box=self.coco.boxes([person], size)[0],
            keypoints=self.coco.inside([point for _, point in found], size, person),
            keypoint_names=[name for name, _ in found],
        )

    def _captions(self, annotations: list[dict], size: tuple[int, int] | None) -> dict:
        check_keys(annotations[0], {'caption'})
        caption = annotations[0]['caption']
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(f'caption={quoted(caption)} must be a text')
        return dict(caption=caption.strip())


def _is_no_crowd(annotation: dict) -> bool:
    # The box of a crowd surrounds many objects, so it is not the right answer for any of them.
    return not annotation.get('iscrowd')


def _has_keypoints(annotation: dict) -> bool:
    points = annotation.get('keypoints')
    return _is_no_crowd(annotation) and isinstance(points, list) and any(points[2::3])
