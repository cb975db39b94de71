"""VQAv2: open questions with ten human answers each (https://arxiv.org/abs/1612.00837)."""

import os
from collections import Counter
from typing import Any

from mmengine.registry import DATASETS

from ..utils.text import DataError, quoted
from .base import RecordDataset
from .conversations.prompts import SHORT_ANSWER, question_messages
from .io.fields import check_keys, check_texts
from .io.json_records import JsonRecords


@DATASETS.register_module()
class VQAv2Dataset(RecordDataset):
    """Questions and answers from VQAv2's own files, read lazily, as conversations.

    ``gt_answer`` of a record is the list of its ten answers, what ``VQAv2Accuracy`` expects. The assistant turn
    is ``multiple_choice_answer``, or the most frequent answer. Files of OK-VQA have the same layout.

    Args:
        question_file (str): Such as ``'v2_OpenEnded_mscoco_val2014_questions.json'``, relative to ``data_root``.
        ann_file (str): Such as ``'v2_mscoco_val2014_annotations.json'``, in the order of the questions. Defaults to
            '': there are no answers, as in the test sets (needs ``test_mode=True``).
        image_name (str): File name of an image. Defaults to ``'COCO_val2014_{image_id:012d}.jpg'``.
        suffix (str): Text after every question. Defaults to LLaVA-1.5's short-answer prompt.
        **kwargs: Further arguments of :class:`RecordDataset`; ``data_prefix=dict(img_path='val2014')``.

    Raises:
        ValueError: If a file is not valid JSON, the files differ in length, or answers are missing in training.
        RecordError: If a record lacks a key, its annotation belongs to another question, or its image cannot be read.

    Examples:
        >>> dataset = VQAv2Dataset('v2_OpenEnded_mscoco_val2014_questions.json', 'v2_mscoco_val2014_annotations.json',
        ...                        data_root='data/coco', data_prefix=dict(img_path='val2014'), test_mode=True)
        >>> dataset[0]['gt_answer'][:2]
        ['down', 'down']
    """

    def __init__(
        self,
        question_file: str,
        ann_file: str = '',
        image_name: str = 'COCO_val2014_{image_id:012d}.jpg',
        suffix: str = SHORT_ANSWER,
        **kwargs,
    ) -> None:
        self.question_file = question_file
        self.ann_file = ann_file
        self.image_name = image_name
        self.suffix = suffix
        self.annotations: JsonRecords | None = None
        super().__init__(**kwargs)

    def open_records(self) -> JsonRecords:
        questions = JsonRecords(os.path.join(self.data_root, self.question_file), key='questions')
        if self.ann_file:
            self.annotations = JsonRecords(os.path.join(self.data_root, self.ann_file), key='annotations')
            if len(self.annotations) != len(questions):
                raise DataError(
                    f'{self.annotations.path} has {len(self.annotations)} annotations for {len(questions)} '
                    f'questions of {self.question_file}; take the files of the same split.'
                )
        elif not self.test_mode:
            raise ValueError('VQAv2Dataset: without ann_file there is nothing to train on; use test_mode=True.')
        return questions

    def source(self, index: int) -> str:
        return self.records.source(index)

    def load_record(self, index: int) -> dict[str, Any]:
        raw = self.records[index]
        check_keys(raw, {'image_id', 'question', 'question_id'})
        check_texts(raw, 'question')
        record = dict(question_id=raw['question_id'], image_id=raw['image_id'])
        answer = None
        if self.annotations is not None:
            annotation = self.annotations[index]
            other = annotation.get('question_id')
            if other != raw['question_id']:
                raise ValueError(
                    f'question {quoted(raw["question_id"])} has the annotation of {quoted(other)} '
                    f'({self.annotations.source(index)}); the two files must have the same order'
                )
            if not annotation.get('answers'):
                raise ValueError(f'the annotation ({self.annotations.source(index)}) has no answers')
            answers = [one['answer'] for one in annotation['answers']]
            # OK-VQA has no `multiple_choice_answer`.
            answer = annotation.get('multiple_choice_answer') or Counter(answers).most_common(1)[0][0]
            if not all(isinstance(one, str) for one in [*answers, answer]):
                raise ValueError(f'the annotation ({self.annotations.source(index)}) has answers that are not texts')
            record.update(gt_answer=answers)
            record.update({key: annotation[key] for key in ('question_type', 'answer_type') if key in annotation})
        return dict(
            messages=question_messages(raw['question'] + self.suffix, 1, answer),
            images=[self._image_file(raw['image_id'])],
            **record,
        )

    def _image_file(self, image_id: int) -> str:
        try:
            return self.image_name.format(image_id=image_id)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f'image_id={quoted(image_id)} does not fit image_name={self.image_name!r}: {error}'
            ) from error
