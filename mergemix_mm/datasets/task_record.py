"""Structured records for the task transforms, from JSON, Parquet or Arrow files of your own."""

import os
from typing import Any

import numpy as np
from mmengine.registry import DATASETS

from .base import RecordDataset
from .io.fields import IMAGE_KEYS, REFUSED_MEDIA, images_of, refuse_foreign_image, refuse_keys
from .io.json_records import JsonRecords
from .io.parquet import TableRecords
from .io.records import open_records


@DATASETS.register_module()
class TaskRecordDataset(RecordDataset):
    """One object per record, with the fields that a task asks for, read lazily from JSON, Parquet or Arrow files.

    ``image`` is its image, ``images`` are several (paths, ``data:`` URLs or bytes). A record with neither is text only.
    Video and sound are refused. All other keys are fields:
    ``{"image": "1.png", "expression": "the red ring", "box": [4, 8, 15, 16]}`` for ``GroundingTask``.

    Args:
        ann_file (str): The file, folder or pattern, relative to ``data_root``, as for :class:`ConversationDataset`.
        **kwargs: Further arguments of :class:`RecordDataset`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is invalid or empty; the message names the file and, for JSON, line and column.
        RecordError: If an image is missing or corrupt, or there is video or sound; names file and line or row.

    Examples:
        >>> dataset = TaskRecordDataset('charts.jsonl', data_root='data/charts',
        ...                             pipeline=[dict(type='ChartToTableTask')])
    """

    def __init__(self, ann_file: str, **kwargs) -> None:
        self.ann_file = ann_file
        super().__init__(**kwargs)

    def open_records(self) -> JsonRecords | TableRecords:
        return open_records(os.path.join(self.data_root, self.ann_file))

    def source(self, index: int) -> str:
        return self.records.source(index)

    @property
    def modalities(self) -> np.ndarray:
        return self.records.flags

    def load_record(self, index: int) -> dict[str, Any]:
        raw = self.records[index]
        refuse_keys(raw, REFUSED_MEDIA)
        refuse_foreign_image(raw)
        dropped = {*IMAGE_KEYS, *REFUSED_MEDIA}
        return {**{key: value for key, value in raw.items() if key not in dropped}, 'images': images_of(raw)}
