"""Captions of whole images, short or long."""

from typing import Any

from mmengine.registry import TRANSFORMS

from .base import TaskTemplate


@TRANSFORMS.register_module()
class CaptionTask(TaskTemplate):
    """An image -> ``caption``, one sentence.

    Args:
        instruction (str, optional): A text without placeholders. Defaults to ``'default'``, the prompt of LLaVA-1.5;
            None leaves the image alone.
    """

    TASK = 'caption'
    FIELDS = ('caption',)
    INSTRUCTION = 'Provide a one-sentence caption for the provided image.'

    def answer(self, record: dict[str, Any]) -> str:
        return record['caption']


@TRANSFORMS.register_module()
class DetailedCaptionTask(CaptionTask):
    """An image -> ``caption``, as detailed as it comes.

    Args:
        instruction (str, optional): A text without placeholders. Defaults to ``'default'``; None leaves the image
            alone.
    """

    TASK = 'detailed_caption'
    INSTRUCTION = 'Describe the image in detail.'
