"""All texts in an image, and where they are."""

from typing import Any

from mmengine.registry import TRANSFORMS

from .base import CoordinateTask, pair_up


@TRANSFORMS.register_module()
class TextSpottingTask(CoordinateTask):
    """An image -> each text in it with its box: ``<p>EXIT</p>[...] <p>open</p>[...]``.

    A record has ``boxes``, and ``texts``, one for each.

    Args:
        instruction (str, optional): A text without placeholders. Defaults to ``'default'``, SPHINX's; None leaves the
            image alone.
        **kwargs: ``decimals`` and ``align`` of :class:`CoordinateTask`.
    """

    TASK = 'text_spotting'
    FIELDS = ('texts', 'boxes')
    INSTRUCTION = 'Please detect all texts and provide their bounding box coordinate.'

    def answer(self, record: dict[str, Any]) -> str:
        return self.write_phrases(record, [(text, [box]) for text, box in pair_up(record, 'texts', 'boxes')])
