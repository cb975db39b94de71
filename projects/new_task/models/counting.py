"""A task of one's own: how many objects of a class are in an image?"""

from typing import Any

from mmengine.registry import TRANSFORMS

from mergemix_mm.datasets import TaskTemplate


@TRANSFORMS.register_module()
class CountingTask(TaskTemplate):
    """``label``, the name of a class -> the number of its ``boxes``, in digits.

    Args:
        instruction (str, optional): A text around ``{label}``. Defaults to ``'default'``; None leaves the label.
    """

    TASK = 'counting'
    FIELDS = ('label', 'boxes')
    INSTRUCTION = 'How many {label} are in the image?'
    QUESTION = '{label}'

    def answer(self, record: dict[str, Any]) -> str:
        return str(len(record['boxes']))
