"""Open questions, as they are."""

from typing import Any

from mmengine.registry import TRANSFORMS

from .base import TaskTemplate


@TRANSFORMS.register_module()
class VQATask(TaskTemplate):
    """``question`` -> ``answer``, with no instruction of its own. Images are optional.

    Args:
        instruction (str, optional): A text around ``{question}``. Defaults to ``'default'``: the question alone.
    """

    TASK = 'vqa'
    FIELDS = ('question', 'answer')
    INSTRUCTION = QUESTION = '{question}'
    NUM_IMAGES = None

    def answer(self, record: dict[str, Any]) -> str:
        return record['answer']
