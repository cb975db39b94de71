"""The regions of a document."""

from typing import Any

from mmengine.registry import TRANSFORMS

from .base import CoordinateTask, pair_up


@TRANSFORMS.register_module()
class LayoutTask(CoordinateTask):
    """A page -> the name of each kind of region with its boxes: ``<p>title</p>[...] <p>text</p>[...;...]``.

    A record has ``boxes``, and ``labels``, the name of each. Kinds come in the order of their first region.

    Args:
        instruction (str, optional): A text without placeholders. Defaults to ``'default'``, SPHINX's; None leaves the
            image alone.
        **kwargs: ``decimals`` and ``align`` of :class:`CoordinateTask`.
    """

    TASK = 'layout'
    FIELDS = ('labels', 'boxes')
    INSTRUCTION = 'Detect the layout of the document in the image.'

    def answer(self, record: dict[str, Any]) -> str:
        by_label: dict[str, list] = {}
        for label, box in pair_up(record, 'labels', 'boxes'):
            by_label.setdefault(label, []).append(box)
        return self.write_phrases(record, list(by_label.items()))
