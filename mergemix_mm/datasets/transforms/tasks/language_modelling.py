"""Plain text, all of which is learnt: what keeps a language model a language model (SPHINX, arXiv 2311.07575)."""

from typing import Any

from mmengine.registry import TRANSFORMS

from .base import TaskTemplate


@TRANSFORMS.register_module()
class LanguageModellingTask(TaskTemplate):
    """``text`` -> the same text, without any question; for the chat template ``plain``."""

    TASK = 'language_modelling'
    FIELDS = ('text',)
    NUM_IMAGES = 0

    def answer(self, record: dict[str, Any]) -> str:
        return record['text']
