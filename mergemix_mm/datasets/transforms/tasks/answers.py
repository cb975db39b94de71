"""Tasks that are answered in words: questions, choices, classes, captions, tables and plain text."""

from string import ascii_uppercase
from typing import Any

from mmengine.registry import TRANSFORMS

from ...conversations.prompts import OPTION_LETTER, SHORT_ANSWER, option_lines
from .base import TaskTemplate


@TRANSFORMS.register_module()
class VQATask(TaskTemplate):
    """``question`` -> ``answer``, without an instruction of its own. Images are optional.

    Args:
        instruction (str, optional): A text around ``{question}``. Defaults to ``'default'``: only the question.
    """

    TASK = 'vqa'
    FIELDS = ('question', 'answer')
    INSTRUCTION = QUESTION = '{question}'
    NUM_IMAGES: int | None = None

    def answer(self, record: dict[str, Any]) -> str:
        return record['answer']


@TRANSFORMS.register_module()
class ShortAnswerTask(VQATask):
    """``question`` -> ``answer``, a word or a phrase. Images are optional.

    Args:
        instruction (str, optional): A text around ``{question}``. Defaults to ``'default'``, the prompt of LLaVA-1.5.
    """

    TASK = 'short_answer'
    INSTRUCTION = '{question}' + SHORT_ANSWER


@TRANSFORMS.register_module()
class TextOnlyTask(VQATask):
    """``question`` -> ``answer`` without an image, so that a language model that learns to see keeps its knowledge.

    Args:
        instruction (str, optional): A text around ``{question}``. Defaults to ``'default'``: only the question.
    """

    TASK = 'text_only'
    NUM_IMAGES = 0


@TRANSFORMS.register_module()
class LanguageModellingTask(TaskTemplate):
    """``text`` -> the same text without a question, all of which is learnt; for the chat template ``plain``.

    Plain text keeps the language model intact (SPHINX, https://arxiv.org/abs/2311.07575).
    """

    TASK = 'language_modelling'
    FIELDS = ('text',)
    NUM_IMAGES = 0

    def answer(self, record: dict[str, Any]) -> str:
        return record['text']


@TRANSFORMS.register_module()
class MultipleChoiceTask(TaskTemplate):
    """A question and its choices (``A. ...``) -> the letter of the right one.

    ``answer`` of a record is one of its ``choices``, its letter, or its index from 0. Images are optional.

    Args:
        instruction (str, optional): A text around ``{question}`` and ``{choices}``. Defaults to ``'default'``, the
            prompt of LLaVA-1.5; None asks with question and choices only.
    """

    TASK = 'multiple_choice'
    FIELDS = ('question', 'choices', 'answer')
    QUESTION = '{question}\n{choices}'
    INSTRUCTION = QUESTION + OPTION_LETTER
    NUM_IMAGES = None

    def values(self, record: dict[str, Any]) -> dict[str, str]:
        return dict(question=record['question'], choices=option_lines(record['choices']))

    def answer(self, record: dict[str, Any]) -> str:
        answer, choices = record['answer'], record['choices']
        letters = ascii_uppercase[: len(choices)]
        for options in (choices, list(letters), range(len(letters))):
            if list(options).count(answer) == 1:
                return letters[list(options).index(answer)]
        raise ValueError(f'answer={answer!r} must be one of its choices {choices}, a letter or an index of one')


@TRANSFORMS.register_module()
class ClassificationTask(TaskTemplate):
    """An image -> ``This is a {label}``.

    Args:
        instruction (str, optional): A text without placeholders. Defaults to ``'default'``, SPHINX's; None shows only
            the image.
    """

    TASK = 'classification'
    FIELDS = ('label',)
    INSTRUCTION = 'Classify the image.'

    def answer(self, record: dict[str, Any]) -> str:
        return f'This is a {record["label"]}'


@TRANSFORMS.register_module()
class CaptionTask(TaskTemplate):
    """An image -> ``caption``, one sentence.

    Args:
        instruction (str, optional): A text without placeholders. Defaults to ``'default'``, the prompt of LLaVA-1.5;
            None shows only the image.
    """

    TASK = 'caption'
    FIELDS = ('caption',)
    INSTRUCTION = 'Provide a one-sentence caption for the provided image.'

    def answer(self, record: dict[str, Any]) -> str:
        return record['caption']


@TRANSFORMS.register_module()
class DetailedCaptionTask(CaptionTask):
    """An image -> ``caption``, a long and detailed one.

    Args:
        instruction (str, optional): A text without placeholders. Defaults to ``'default'``; None shows only
            the image.
    """

    TASK = 'detailed_caption'
    INSTRUCTION = 'Describe the image in detail.'


@TRANSFORMS.register_module()
class ChartToTableTask(TaskTemplate):
    """An image of a chart -> ``table``, the numbers of the chart as text.

    Args:
        instruction (str, optional): A text without placeholders. Defaults to ``'default'``, a wording of this
            project; None shows only the image.
    """

    TASK = 'chart_to_table'
    FIELDS = ('table',)
    INSTRUCTION = 'Convert the chart to a table.'

    def answer(self, record: dict[str, Any]) -> str:
        return record['table']
