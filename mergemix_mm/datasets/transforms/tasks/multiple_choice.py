"""Questions with lettered choices."""

from string import ascii_uppercase
from typing import Any

from mmengine.registry import TRANSFORMS

from ...conversations.prompts import OPTION_LETTER, option_lines
from .base import TaskTemplate


@TRANSFORMS.register_module()
class MultipleChoiceTask(TaskTemplate):
    """A question and its choices, ``A. ...`` each -> the letter of the right one.

    ``answer`` of a record is one of its ``choices``, its letter, or its index from 0. Images are optional.

    Args:
        instruction (str, optional): A text around ``{question}`` and ``{choices}``. Defaults to ``'default'``, the
            prompt of LLaVA-1.5; None leaves question and choices.
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
