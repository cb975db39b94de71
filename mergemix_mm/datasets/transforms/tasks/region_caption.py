"""Referring expression generation: from a box to words."""

from typing import Any

from mmengine.registry import TRANSFORMS

from .base import CoordinateTask


@TRANSFORMS.register_module()
class RegionCaptionTask(CoordinateTask):
    """``box`` -> ``caption``, a short description of the region.

    Args:
        instruction (str, optional): A text around ``{box}``. Defaults to ``'default'``, SPHINX's.
        **kwargs: ``decimals`` and ``align`` of :class:`CoordinateTask`.
    """

    TASK = 'region_caption'
    FIELDS = ('box', 'caption')
    INSTRUCTION = 'Please provide a short description for this region: {box}'
    QUESTION = '{box}'

    def values(self, record: dict[str, Any]) -> dict[str, str]:
        return dict(box=self.write(record, [record['box']]))

    def answer(self, record: dict[str, Any]) -> str:
        return record['caption']
