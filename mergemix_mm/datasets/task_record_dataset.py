"""Structured records for the task transforms from one's own JSON files."""

import os
from typing import Any

import numpy as np
from mmengine.registry import DATASETS

from .conversation_formats import has_images
from .image_sources import IMAGE_KEYS
from .json_records import JsonRecords
from .record_dataset import RecordDataset


@DATASETS.register_module()
class TaskRecordDataset(RecordDataset):
    """One object per record, with the fields that a task asks for, read lazily from a JSON array or JSON lines.

    ``image`` is the path of its image, ``images`` those of several; without either it is text only. All other keys
    are fields: ``{"image": "1.png", "expression": "the red ring", "box": [4, 8, 15, 16]}`` for ``GroundingTask``.

    Args:
        ann_file (str): The file, relative to ``data_root``.
        **kwargs: Further arguments of :class:`RecordDataset`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not valid JSON or empty; names file, line and column.
        RecordError: If an image is missing or corrupt, with file and line.

    Examples:
        >>> dataset = TaskRecordDataset('charts.jsonl', data_root='data/charts',
        ...                             pipeline=[dict(type='ChartToTableTask')])
    """

    def __init__(self, ann_file: str, **kwargs) -> None:
        self.ann_file = ann_file
        super().__init__(**kwargs)

    def open_records(self) -> JsonRecords:
        return JsonRecords(os.path.join(self.data_root, self.ann_file), flag=has_images)

    def source(self, index: int) -> str:
        return self.records.source(index)

    @property
    def modalities(self) -> np.ndarray:
        return self.records.flags

    def load_record(self, index: int) -> dict[str, Any]:
        raw = dict(self.records[index])
        image, images = (raw.pop(key, None) for key in IMAGE_KEYS)
        return {**raw, 'images': ([image] if image else []) + list(images or [])}
