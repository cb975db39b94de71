"""Conversations about images, or of text only, from JSON, Parquet and Arrow files of many layouts."""

import os
from typing import Any

import numpy as np
from mmengine.registry import DATASETS

from .base import RecordDataset
from .conversations.formats import other_keys, parse_conversation
from .io.json_records import JsonRecords
from .io.parquet import TableRecords
from .io.records import open_records


@DATASETS.register_module()
class ConversationDataset(RecordDataset):
    """Conversations to train on (and to be tested on), read lazily.

    The file is a JSON array, JSON lines, Parquet, or a folder of Parquet files or of ``Dataset.save_to_disk``. It may
    have any size: memory holds only the positions of its records. A record may be LLaVA's (``conversations``;
    https://github.com/haotian-liu/LLaVA), ``messages`` as transformers and trl write them, text only, or a preference
    pair (``chosen`` and ``rejected``); see :func:`parse_conversation`. Images are paths of files, ``data:`` URLs, or
    bytes. Keys without a meaning here stay in the record; they are counted and logged once.

    Args:
        ann_file (str): The file, the folder, or a pattern such as ``'train-*.parquet'``, relative to ``data_root``; see
            :class:`JsonRecords` and :class:`TableRecords`.
        **kwargs: ``data_root``, ``data_prefix=dict(img_path=...)``, ``pipeline``, ``on_error='raise' | 'skip'``,
            ``test_mode``, ``metainfo``, ``background`` and ``max_pixels`` of :class:`RecordDataset`. With
            ``test_mode=True`` a conversation may end with a question.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is invalid or empty; the message names the file and, for JSON, line and column.
        RecordError: If a record is unusable: an unknown role, a missing or empty answer, turns that do not alternate,
            different numbers of placeholders and images, video, sound or tools, an image that is missing or corrupt.
            The message names the file and the line or row.

    Examples:
        >>> dataset = ConversationDataset('llava_v1_5_mix665k.json', data_root='data/llava',
        ...                               data_prefix=dict(img_path='images'), on_error='skip')
        >>> dataset[0]['messages'][0]['role'], dataset[0]['source']
        ('user', 'data/llava/llava_v1_5_mix665k.json:2')
    """

    def __init__(self, ann_file: str, **kwargs) -> None:
        self.ann_file = ann_file
        super().__init__(**kwargs)

    def open_records(self) -> JsonRecords | TableRecords:
        return open_records(os.path.join(self.data_root, self.ann_file), other_keys)

    def source(self, index: int) -> str:
        return self.records.source(index)

    @property
    def modalities(self) -> np.ndarray:
        return self.records.flags

    def load_record(self, index: int) -> dict[str, Any]:
        return parse_conversation(self.records[index], answered=not self.test_mode)
