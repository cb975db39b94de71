"""ScienceQA: multiple-choice questions of school science, half of them with an image (https://arxiv.org/abs/2209.09513)."""

import os
from string import ascii_uppercase
from typing import Any

import numpy as np
from mmengine.registry import DATASETS

from ..utils.text import DataError, quoted
from .base import RecordDataset
from .conversations.prompts import OPTION_LETTER, option_lines, question_messages
from .io.fields import check_keys, check_texts
from .io.json_records import read_json


@DATASETS.register_module()
class ScienceQADataset(RecordDataset):
    """Multiple-choice questions from ScienceQA's own files, as conversations.

    The files are those that the authors publish: ``problems.json``, ``pid_splits.json``, and images at
    ``<img_path>/<split>/<problem>/image.png``. The prompt is the hint (``Context: ...``), the question, the choices
    ``A. ...`` and the suffix. ``gt_answer`` and the assistant turn are the letter; ``choices``, ``hint``, ``subject``,
    ``grade`` and ``has_image`` are kept for the metrics. (MMPretrain's ``ScienceQA`` is another dataset: without
    conversations, and with the index of the choice as answer.)

    Args:
        ann_file (str): Problems, relative to ``data_root``. Defaults to ``'problems.json'``.
        split_file (str): Which problem belongs to which split. Defaults to ``'pid_splits.json'``.
        split (str): A key of the split file: ``'train'``, ``'val'``, ``'test'``, ``'minitest'``... Defaults to
            ``'test'``.
        image_only (bool): Whether to leave out problems without image. Defaults to False.
        suffix (str): Text after the choices. Defaults to LLaVA-1.5's prompt for multiple choice.
        test_mode (bool, optional): As for :class:`RecordDataset`. Defaults to None: False for the train splits.
        **kwargs: Further arguments of :class:`RecordDataset`.

    Raises:
        ValueError: If a file is not valid JSON or there is no such split.
        RecordError: If a problem lacks a key, or its image cannot be read.

    Examples:
        >>> dataset = ScienceQADataset(data_root='data/scienceqa', data_prefix=dict(img_path='images'), split='test')
        >>> dataset[0]['gt_answer'], dataset[0]['choices']
        ('B', ['West Virginia', 'Louisiana', 'Arizona', 'Oklahoma'])
    """

    def __init__(
        self,
        ann_file: str = 'problems.json',
        split_file: str = 'pid_splits.json',
        split: str = 'test',
        image_only: bool = False,
        suffix: str = OPTION_LETTER,
        test_mode: bool | None = None,
        **kwargs,
    ) -> None:
        self.ann_file = ann_file
        self.split_file = split_file
        self.split = split
        self.image_only = image_only
        self.suffix = suffix
        super().__init__(test_mode='train' not in split if test_mode is None else test_mode, **kwargs)

    def open_records(self) -> list[tuple[str, dict]]:
        problems, splits = self._read_object(self.ann_file), self._read_object(self.split_file)
        if self.split not in splits:
            found, path = quoted(sorted(splits), 200), self._path(self.split_file)
            raise ValueError(
                f'ScienceQADataset: split={self.split!r} is unknown; {self.split_file} has {found} ({path}).'
            )
        names = splits[self.split]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(f'{self._path(self.split_file)}: {self.split!r} must be a list of names of problems.')
        lost = [name for name in names if name not in problems]
        if lost:
            raise DataError(f'{self._path(self.ann_file)} lacks the problems {quoted(lost)} of {self.split_file}.')
        wrong = [name for name in names if not isinstance(problems[name], dict)]
        if wrong:
            raise DataError(f'{self._path(self.ann_file)}: the problem {quoted(wrong[0])} must be an object {{...}}.')
        chosen = [(name, problems[name]) for name in names]
        return [(name, raw) for name, raw in chosen if raw.get('image') or not self.image_only]

    def source(self, index: int) -> str:
        return f'{self._path(self.ann_file)}:problem {self.records[index][0]}'

    @property
    def modalities(self) -> np.ndarray:
        return np.array([bool(raw.get('image')) for _, raw in self.records])

    @property
    def lengths(self) -> np.ndarray:
        # As texts, because a damaged problem has values of other types.
        return np.array(
            [sum(len(str(raw.get(key))) for key in ('hint', 'question', 'choices')) for _, raw in self.records]
        )

    def load_record(self, index: int) -> dict[str, Any]:
        name, raw = self.records[index]
        check_keys(raw, {'question', 'choices', 'answer', 'split'})
        choices, answer = raw['choices'], raw['answer']
        if not isinstance(choices, list) or not all(isinstance(one, str) for one in choices):
            raise ValueError(f'choices={quoted(choices)} must be a list of texts')
        if len(choices) > len(ascii_uppercase):
            raise ValueError(f'has {len(choices)} choices, more than there are letters')
        if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
            raise ValueError(f'answer {quoted(answer)} must be the index of one of its {len(choices)} choices, from 0')
        hint = raw.get('hint') or ''
        check_texts(dict(raw, hint=hint), 'question', 'hint', 'split')
        images = [os.path.join(raw['split'], name, raw['image'])] if raw.get('image') else []
        lines = [f'Context: {hint}'] if hint else []
        lines += [raw['question'], option_lines(choices)]
        return dict(
            messages=question_messages('\n'.join(lines) + self.suffix, len(images), ascii_uppercase[answer]),
            images=images,
            gt_answer=ascii_uppercase[answer],
            question_id=name,
            choices=choices,
            hint=hint,
            subject=raw.get('subject'),
            grade=raw.get('grade'),
            has_image=bool(images),
        )

    def _path(self, name: str) -> str:
        return os.path.join(self.data_root, name)

    def _read_object(self, name: str) -> dict:
        path = self._path(name)
        found = read_json(path)
        if not isinstance(found, dict):
            raise DataError(f'{path}: must hold an object {{...}}, found {quoted(found)}.')
        return found
