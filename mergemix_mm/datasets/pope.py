"""POPE: does a model see objects that are not there? (https://arxiv.org/abs/2305.10355)."""

import os
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import numpy as np
from mmengine.registry import DATASETS
from torch.utils.data import ConcatDataset

from ..utils.text import quoted
from .base import RecordDataset
from .conversations.prompts import SHORT_ANSWER, question_messages
from .io.fields import check_keys, check_texts
from .io.json_records import JsonRecords


@DATASETS.register_module()
class POPEDataset(RecordDataset):
    """Yes/no questions about objects, from POPE's own files.

    A file such as ``coco_pope_random.json`` has one JSON object per line: ``question_id``, ``image`` (file name),
    ``text`` (question) and ``label`` (yes or no). ``gt_answer`` of a record is the label in lower case; so is its
    assistant turn.

    Args:
        ann_file (str | dict[str, str]): The file, relative to ``data_root``, or several by their category (``random``,
            ``popular``, ``adversarial``), which their records keep as ``category``.
        suffix (str): Text after every question. Defaults to LLaVA-1.5's short-answer prompt.
        test_mode (bool): As for :class:`RecordDataset`. Defaults to True.
        **kwargs: Further arguments of :class:`RecordDataset`; ``data_prefix=dict(img_path='val2014')`` for COCO.

    Raises:
        ValueError: If the file is not valid JSON.
        RecordError: If a record lacks a key, its label is neither yes nor no, or its image cannot be read.

    Examples:
        >>> dataset = POPEDataset('coco_pope_random.json', data_root='data/coco', data_prefix=dict(img_path='val2014'))
        >>> dataset[0]['gt_answer']
        'yes'
    """

    def __init__(
        self,
        ann_file: str | Mapping[str, str],
        suffix: str = SHORT_ANSWER,
        test_mode: bool = True,
        **kwargs,
    ) -> None:
        self.ann_file = ann_file
        self.suffix = suffix
        super().__init__(test_mode=test_mode, **kwargs)

    def open_records(self) -> ConcatDataset:
        files = self.ann_file if isinstance(self.ann_file, Mapping) else {'': self.ann_file}
        self.categories = list(files)
        records: list[Any] = [JsonRecords(os.path.join(self.data_root, file)) for file in files.values()]
        return ConcatDataset(records)

    def source(self, index: int) -> str:
        file, place = self._place(index)
        return self.records.datasets[file].source(place)

    @property
    def lengths(self) -> np.ndarray:
        return np.concatenate([file.lengths for file in self.records.datasets])

    def _place(self, index: int) -> tuple[int, int]:
        """The number of the file that holds a record, and its index in that file."""
        ends = [0, *self.records.cumulative_sizes]
        file = bisect_right(ends, index) - 1
        return file, index - ends[file]

    def load_record(self, index: int) -> dict[str, Any]:
        raw = self.records[index]
        check_keys(raw, {'image', 'text', 'label'})
        check_texts(raw, 'image', 'text')
        answer = str(raw['label']).strip().lower()
        if answer not in ('yes', 'no'):
            raise ValueError(f"label {quoted(raw['label'])} must be 'yes' or 'no'")
        messages = question_messages(raw['text'] + self.suffix, 1, answer)
        record = dict(
            messages=messages, images=[raw['image']], gt_answer=answer, question_id=raw.get('question_id', index)
        )
        category = self.categories[self._place(index)[0]]
        return record | dict(category=category) if category else record
