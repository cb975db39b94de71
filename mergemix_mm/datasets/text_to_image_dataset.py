"""Prompts with the images that they describe, for training models that generate images."""

import os
from typing import Any

from mmengine.registry import DATASETS

from .json_records import JsonRecords
from .record_dataset import RecordDataset

PROMPT_KEYS = ('prompt', 'caption', 'text')


@DATASETS.register_module()
class TextToImageDataset(RecordDataset):
    """Text-to-image records, read lazily from a JSON array or JSON lines.

    A line holds ``prompt`` (or ``caption``, or ``text``) and ``image``, the path of a file:
    ``{"prompt": "a red ring", "image": "0001.png"}``. Its other keys are kept for metrics. The record for
    ``EncodeGeneration`` has ``prompt`` (str) and ``images`` (one PIL image, RGB).

    Args:
        ann_file (str): The file, relative to ``data_root``.
        **kwargs: ``data_root``, ``data_prefix=dict(img_path=...)``, ``pipeline``, ``on_error='raise' | 'skip'``,
            ``test_mode`` and ``metainfo`` of :class:`RecordDataset`. With ``test_mode=True`` a record needs no image.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not valid JSON or empty; names file, line and column.
        RecordError: If a record is unusable (no or an empty prompt, several of the keys, an image that is missing or
            corrupt), with file and line.
    """

    def __init__(self, ann_file: str, **kwargs) -> None:
        self.ann_file = ann_file
        super().__init__(**kwargs)

    def open_records(self) -> JsonRecords:
        return JsonRecords(os.path.join(self.data_root, self.ann_file))

    def source(self, index: int) -> str:
        return self.records.source(index)

    def load_record(self, index: int) -> dict[str, Any]:
        record = dict(self.records[index])
        found = [key for key in PROMPT_KEYS if key in record]
        if len(found) != 1:
            raise ValueError(f'a record needs one of {list(PROMPT_KEYS)}, found {found} among {sorted(record)}')
        prompt, path = record.pop(found[0]), record.pop('image', None)
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f'{found[0]}={prompt!r} must be a text')
        if path is None and not self.test_mode:
            raise ValueError('image=None must be the path of a file')
        return {**record, 'prompt': prompt.strip(), 'images': [] if path is None else [path]}
