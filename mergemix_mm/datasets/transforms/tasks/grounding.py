"""Referring expression comprehension: from words to a box."""

from typing import Any

from mmengine.registry import TRANSFORMS

from .base import CoordinateTask


@TRANSFORMS.register_module()
class GroundingTask(CoordinateTask):
    """``expression`` -> ``box``, the region that it refers to.

    Args:
        instruction (str, optional): A text around ``{expression}``. Defaults to ``'default'``, SPHINX's.
        **kwargs: ``decimals`` and ``align`` of :class:`CoordinateTask`.
    """

    TASK = 'grounding'
    FIELDS = ('expression', 'box')
    INSTRUCTION = 'Please provide the bounding box coordinate of the region this sentence describes: {expression}.'
    QUESTION = '{expression}'

    def answer(self, record: dict[str, Any]) -> str:
        return self.write(record, [record['box']])
