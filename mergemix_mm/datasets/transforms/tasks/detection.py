"""All objects of a class."""

from typing import Any

from mmengine.registry import TRANSFORMS

from .base import CoordinateTask


@TRANSFORMS.register_module()
class DetectionTask(CoordinateTask):
    """``label``, the name of a class -> ``boxes``, those of all its objects, in one bracket.

    Args:
        instruction (str, optional): A text around ``{label}``. Defaults to ``'default'``, SPHINX's.
        **kwargs: ``decimals`` and ``align`` of :class:`CoordinateTask`.
    """

    TASK = 'detection'
    FIELDS = ('label', 'boxes')
    INSTRUCTION = 'Detect all {label} shown in the image.'
    QUESTION = '{label}'

    def answer(self, record: dict[str, Any]) -> str:
        return self.write(record, record['boxes'])
