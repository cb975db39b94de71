"""Prompts with the images that they describe, for training models that generate images."""

import os
from typing import Any

from mmengine.registry import DATASETS

from ..utils.text import quoted
from .base import RecordDataset
from .io.fields import IMAGE_KEYS, REFUSED_MEDIA, images_of, refuse_keys
from .io.json_records import JsonRecords
from .io.parquet import TableRecords
from .io.records import open_records

PROMPT_KEYS = ('prompt', 'caption', 'text')


@DATASETS.register_module()
class TextToImageDataset(RecordDataset):
    """Text-to-image records, read lazily from JSON, Parquet or Arrow files.

    A record holds ``prompt`` (or ``caption``, or ``text``) and ``image`` (a path, a ``data:`` URL or bytes):
    ``{"prompt": "a red ring", "image": "0001.png"}``. Its other keys are kept for metrics, counted,
    and logged once. The record for ``EncodeGeneration`` has ``prompt`` (str) and ``images`` (one PIL image, RGB).

    Args:
        ann_file (str): The file, folder or pattern, relative to ``data_root``, as for :class:`ConversationDataset`.
        **kwargs: ``data_root``, ``data_prefix=dict(img_path=...)``, ``pipeline``, ``on_error='raise' | 'skip'``,
            ``test_mode``, ``metainfo``, ``background`` and ``max_pixels`` of :class:`RecordDataset`. With
            ``test_mode=True`` a record needs no image.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is invalid or empty; the message names the file and, for JSON, line and column.
        RecordError: If a record is unusable: no prompt or an empty one, several of the prompt's keys, an image that is
            missing or corrupt, video or sound. The message names the file and the line or row.
    """

    def __init__(self, ann_file: str, **kwargs) -> None:
        self.ann_file = ann_file
        super().__init__(**kwargs)

    def open_records(self) -> JsonRecords | TableRecords:
        return open_records(os.path.join(self.data_root, self.ann_file), _other_keys)

    def source(self, index: int) -> str:
        return self.records.source(index)

    def load_record(self, index: int) -> dict[str, Any]:
        record = dict(self.records[index])
        refuse_keys(record, REFUSED_MEDIA)
        found = [key for key in PROMPT_KEYS if record.get(key) is not None]
        if len(found) != 1:
            raise ValueError(
                f'a record needs one of {list(PROMPT_KEYS)}, found {found} among {quoted(sorted(record), 200)}'
            )
        prompt, images = record[found[0]], images_of(record)
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f'{found[0]}={quoted(prompt)} must be a text')
        if len(images) != 1 and not (self.test_mode and not images):
            raise ValueError(
                f'image={quoted(record.get("image"))} must be the path of a file; there are {len(images)} images'
            )
        return {**{key: record[key] for key in _other_keys(record)}, 'prompt': prompt.strip(), 'images': images}


def _other_keys(record: dict) -> list[str]:
    return [key for key in record if key not in {*PROMPT_KEYS, *IMAGE_KEYS, *REFUSED_MEDIA}]
