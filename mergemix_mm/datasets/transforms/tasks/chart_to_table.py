"""The numbers behind a chart."""

from typing import Any

from mmengine.registry import TRANSFORMS

from .base import TaskTemplate


@TRANSFORMS.register_module()
class ChartToTableTask(TaskTemplate):
    """An image of a chart -> ``table``, the text of its table.

    Args:
        instruction (str, optional): A text without placeholders. Defaults to ``'default'``, a wording of this
            project; None leaves the image alone.
    """

    TASK = 'chart_to_table'
    FIELDS = ('table',)
    INSTRUCTION = 'Convert the chart to a table.'

    def answer(self, record: dict[str, Any]) -> str:
        return record['table']
