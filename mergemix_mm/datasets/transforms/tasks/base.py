"""Bases of the task transforms: an instruction around a question, the conversation, and coordinates as text."""

from abc import abstractmethod
from collections.abc import Sequence
from string import Formatter
from typing import Any

import torch
from mmcv.transforms import BaseTransform

from ....functional.coordinates import format_boxes, format_phrase
from ....functional.views import ALIGNMENTS, boxes_to_square
from ....utils.numbers import check_number
from ....utils.text import RecordError, quoted
from ...conversations.prompts import question_messages
from ...io.boxes import clip_to_image
from ...io.fields import check_keys

Rows = Sequence[Sequence[float]]


class TaskTemplate(BaseTransform):
    """Base of the task transforms: turns a structured record into one question and its answer.

    A subclass sets the attributes below and implements :meth:`answer`. If its question holds more than fields of the
    record, it also overrides :meth:`values`. ``projects/new_task`` is an example.

    Args:
        instruction (str, optional): The question with the wording that distinguishes this task from the others, with
            the same placeholders as :attr:`QUESTION`. Defaults to ``'default'``: :attr:`INSTRUCTION`. None asks the
            bare question, for the ablation without task-specific instructions.

    Attributes:
        TASK (str): The name of the task; samples get it as ``task``.
        FIELDS (tuple[str, ...]): The keys that a record must have in addition to ``images``.
        INSTRUCTION (str): The question with its instruction.
        QUESTION (str): The question without it; '' if the user turn consists of the image only.
        NUM_IMAGES (int | None): The number of images that a record must have; None allows any number.

    Raises:
        ValueError: If ``instruction`` has other placeholders.
        RecordError: If a record lacks a field or has another number of images, or a field of the text is not a text;
            names source and task.
    """

    TASK = ''
    FIELDS: tuple[str, ...] = ()
    INSTRUCTION = ''
    QUESTION = ''
    NUM_IMAGES: int | None = 1

    def __init__(self, instruction: str | None = 'default') -> None:
        template = self.INSTRUCTION if instruction == 'default' else instruction or self.QUESTION
        self.placeholders = _placeholders(self.QUESTION)
        if _placeholders(template) != self.placeholders:
            raise ValueError(
                f'{type(self).__name__}: instruction={template!r} has the placeholders '
                f'{sorted(_placeholders(template))}; it must have {sorted(self.placeholders)}, or be None.'
            )
        self.template = template

    @abstractmethod
    def answer(self, record: dict[str, Any]) -> str:
        """The text of the answer."""

    def values(self, record: dict[str, Any]) -> dict[str, str]:
        """The text of each placeholder of the question: the field of the record of that name, by default."""
        return {name: record[name] for name in self.placeholders}

    def added(self, record: dict[str, Any]) -> dict[str, Any]:
        """Further keys that the record gets with its conversation."""
        return {}

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Turn a record into a conversation.

        Args:
            results (dict): A record with ``images`` and the fields of the task.

        Returns:
            dict: The record with ``messages``, ``task`` and ``gt_answer``; an existing ``gt_answer`` is kept.
        """
        try:
            check_keys(results, {'images', *self.FIELDS})
            num_images = len(results['images'])
            if self.NUM_IMAGES not in (None, num_images):
                raise ValueError(f'has {num_images} images, where the task takes {self.NUM_IMAGES}')
            values = {name: _text(name, value) for name, value in self.values(results).items()}
            answer = _text('answer', self.answer(results))
            added = self.added(results)
        except ValueError as error:
            raise RecordError(f'{results.get("source", "record")}: {self.TASK}: {error}') from error
        except (AttributeError, IndexError, KeyError, TypeError) as error:  # Such as a number in the place of a list.
            raise RecordError(
                f'{results.get("source", "record")}: {self.TASK}: its fields are not in the layout of '
                f'{type(self).__name__}: {quoted(error, 200)}'
            ) from error
        # Only the template is formatted: braces inside of values stay as they are.
        messages = question_messages(self.template.format(**values), num_images, answer)
        return {'gt_answer': answer, **results, **added, 'messages': messages, 'task': self.TASK}


class CoordinateTask(TaskTemplate):
    """Base of the tasks that read or write coordinates: as plain text, in [0, 1] of the square-padded image.

    Records hold boxes (xyxy) and key points (xy) in pixels; what overhangs the image by less than a pixel is clipped.
    In addition to the conversation, a record gets ``gt_boxes`` (list of [x1, y1, x2, y2] in pixels), ``image_size``
    (height, width) and ``align``; a metric needs them to map text back to pixels.

    Args:
        instruction (str, optional): As for :class:`TaskTemplate`. Defaults to ``'default'``.
        decimals (int): Digits after the decimal point, >= 1. Defaults to 3.
        align (str): Where the image lies in its square, ``'center'`` or ``'corner'``; must equal that of the processor.
            Defaults to ``'center'``.

    Raises:
        ValueError: If an argument is out of its range.
        RecordError: As for :class:`TaskTemplate`, or if coordinates are malformed or outside the image, or a box has no
            width or height.
    """

    def __init__(self, instruction: str | None = 'default', decimals: int = 3, align: str = 'center') -> None:
        super().__init__(instruction)
        allowed = 'at least 1.'
        check_number(f'{type(self).__name__}: decimals', decimals, allowed, least=1, integer=True)
        if align not in ALIGNMENTS:
            raise ValueError(f'{type(self).__name__}: align={align!r} is unknown; use one of {ALIGNMENTS}.')
        self.decimals, self.align = decimals, align

    def boxes(self, record: dict[str, Any]) -> Rows:
        """The boxes of a record in pixels: its ``box`` or its ``boxes``, whichever is in ``FIELDS``."""
        return [record['box']] if 'box' in self.FIELDS else record['boxes']

    def added(self, record: dict[str, Any]) -> dict[str, Any]:
        size = image_size(record)
        return dict(gt_boxes=clip_to_image(self.boxes(record), size), image_size=size, align=self.align)

    def write(self, record: dict[str, Any], rows: Rows) -> str:
        """Write boxes or key points in pixels as ``[0.100,0.200,0.300,0.400;...]``."""
        return format_boxes(self._in_square(record, rows), self.decimals)

    def write_phrase(self, record: dict[str, Any], phrase: str, rows: Rows) -> str:
        """Write a phrase and its boxes or key points in pixels as ``<p>a red ring</p>[...]``."""
        return format_phrase(phrase, self._in_square(record, rows), self.decimals)

    def write_phrases(self, record: dict[str, Any], phrases: Sequence[tuple[str, Rows]]) -> str:
        """Write several phrases, separated by spaces."""
        return ' '.join(self.write_phrase(record, *phrase) for phrase in phrases)

    def _in_square(self, record: dict[str, Any], rows: Rows) -> Rows:
        size = image_size(record)
        pixels = torch.tensor(clip_to_image(rows, size), dtype=torch.float64)
        return boxes_to_square(pixels, size, self.align).tolist()


def image_size(record: dict[str, Any]) -> tuple[int, int]:
    """Height and width of the image of a record.

    Raises:
        ValueError: If ``size``, that of the annotation, differs: then the coordinates are of another image.
    """
    image = record['images'][0]
    found, said = (image.height, image.width), tuple(record.get('size', (image.height, image.width)))
    if said != found:
        turned = '; is it turned by its EXIF orientation, and annotated as it is stored?' if said == found[::-1] else ''
        raise ValueError(f'annotated for an image of {quoted(said)} (height, width), but the image has {found}{turned}')
    return found


def pair_up(record: dict[str, Any], names: str, rows: str) -> list[tuple[str, list]]:
    """The names of a record, each with its row of coordinates.

    Raises:
        ValueError: If their numbers differ.
    """
    if len(record[names]) != len(record[rows]):
        raise ValueError(f'has {len(record[names])} {names} for {len(record[rows])} {rows}')
    return list(zip(record[names], record[rows]))


def _placeholders(template: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(template) if name is not None}


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f'{name}={value!r} must be a text that is not empty')
    return value
