"""The class of an image, as a sentence."""

from typing import Any

from mmengine.registry import TRANSFORMS

from .base import TaskTemplate


@TRANSFORMS.register_module()
class ClassificationTask(TaskTemplate):
    """An image -> ``This is a {label}``.

    Args:
        instruction (str, optional): A text without placeholders. Defaults to ``'default'``, SPHINX's; None leaves the
            image alone.
    """

    TASK = 'classification'
    FIELDS = ('label',)
    INSTRUCTION = 'Classify the image.'

    def answer(self, record: dict[str, Any]) -> str:
        return f'This is a {record["label"]}'
