"""POPE: does a model see objects that are not there? (https://arxiv.org/abs/2305.10355)."""

import os
from typing import Any

import numpy as np
from mmengine.registry import DATASETS

from .conversation_formats import question_messages
from .json_records import JsonRecords
from .record_dataset import RecordDataset


@DATASETS.register_module()
class POPEDataset(RecordDataset):
    """Yes/no questions about objects, from POPE's own files.

    A file such as ``coco_pope_random.json`` has one JSON object per line: ``question_id``, ``image`` (file name),
    ``text`` (question) and ``label`` (yes or no). ``gt_answer`` of a record is the label in lower case, which is its
    assistant turn as well.

    Args:
        ann_file (str): The file, relative to ``data_root``.
        suffix (str): Put behind every question. Defaults to LLaVA-1.5's short-answer prompt.
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
        ann_file: str,
        suffix: str = '\nAnswer the question using a single word or phrase.',
        test_mode: bool = True,
        **kwargs,
    ) -> None:
        self.ann_file = ann_file
        self.suffix = suffix
        super().__init__(test_mode=test_mode, **kwargs)

    def open_records(self) -> JsonRecords:
        return JsonRecords(os.path.join(self.data_root, self.ann_file))

    def source(self, index: int) -> str:
        return self.records.source(index)

    @property
    def modalities(self) -> np.ndarray:
        return np.ones(len(self), dtype=bool)

    def load_record(self, index: int) -> dict[str, Any]:
        raw = self.records[index]
        missing = {'image', 'text', 'label'} - set(raw)
        if missing:
            raise ValueError(f'lacks {sorted(missing)}; its keys are {sorted(raw)}')
        answer = str(raw['label']).strip().lower()
        if answer not in ('yes', 'no'):
            raise ValueError(f"label {raw['label']!r} must be 'yes' or 'no'")
        messages = question_messages(raw['text'] + self.suffix, 1, answer)
        return dict(
            messages=messages, images=[raw['image']], gt_answer=answer, question_id=raw.get('question_id', index)
        )
