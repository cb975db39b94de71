"""Conversations about images, or of text only, from LLaVA's and transformers' JSON layouts."""

import os
from typing import Any

import numpy as np
from mmengine.registry import DATASETS

from .conversation_formats import has_images, parse_conversation
from .json_records import JsonRecords
from .record_dataset import RecordDataset


@DATASETS.register_module()
class ConversationDataset(RecordDataset):
    """Conversations to train on (and to be tested on), read lazily.

    The file is a JSON array or JSON lines of any size; only its byte offsets are held in memory. Its records may be
    LLaVA's (``conversations``; https://github.com/haotian-liu/LLaVA), ``messages`` as transformers and trl write them,
    text only, or preference pairs (``chosen`` and ``rejected``); see :func:`parse_conversation`.

    Args:
        ann_file (str): The file, relative to ``data_root``.
        **kwargs: ``data_root``, ``data_prefix=dict(img_path=...)``, ``pipeline``, ``on_error='raise' | 'skip'``,
            ``test_mode`` and ``metainfo`` of :class:`RecordDataset`. With ``test_mode=True`` a conversation may end
            with a question.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not valid JSON or empty; names file, line and column.
        RecordError: If a record is unusable (unknown role, no or an empty answer, turns that do not alternate, not
            as many placeholders as images, an image that is missing or corrupt), with file and line.

    Examples:
        >>> dataset = ConversationDataset('llava_v1_5_mix665k.json', data_root='data/llava',
        ...                               data_prefix=dict(img_path='images'), on_error='skip')
        >>> dataset[0]['messages'][0]['role'], dataset[0]['source']
        ('user', 'data/llava/llava_v1_5_mix665k.json:2')
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
        return parse_conversation(self.records[index], answered=not self.test_mode)
