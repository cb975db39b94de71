"""A new task: how many objects of a class are in an image?"""

from typing import Any

from mmengine.registry import TRANSFORMS

from mergemix_mm.datasets import TaskTemplate


@TRANSFORMS.register_module()
class CountingTask(TaskTemplate):
    """Asks for the number of objects of a class, which is the number of ``boxes`` of ``label``, in digits.

    Args:
        instruction (str, optional): A text around ``{label}``. None leaves only the label. Defaults to ``'default'``.
    """

    TASK = 'counting'
    FIELDS = ('label', 'boxes')
    INSTRUCTION = 'How many {label} are in the image?'
    QUESTION = '{label}'

    def answer(self, record: dict[str, Any]) -> str:
        return str(len(record['boxes']))
