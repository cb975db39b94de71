"""The key points of a person."""

from typing import Any

from mmengine.registry import TRANSFORMS

from .base import CoordinateTask, pair_up


@TRANSFORMS.register_module()
class PoseTask(CoordinateTask):
    """``box``, the region of a person -> the name and place of each key point: ``<p>nose</p>[0.500,0.250] ...``.

    A record has ``keypoints``, [n, 2] in pixels, those that are annotated, and ``keypoint_names``, one for each.

    Args:
        instruction (str, optional): A text around ``{box}``. Defaults to ``'default'``, SPHINX's.
        **kwargs: ``decimals`` and ``align`` of :class:`CoordinateTask`.
    """

    TASK = 'pose'
    FIELDS = ('box', 'keypoints', 'keypoint_names')
    INSTRUCTION = 'Detect the key points of the person in the region {box}.'
    QUESTION = '{box}'

    def values(self, record: dict[str, Any]) -> dict[str, str]:
        return dict(box=self.write(record, [record['box']]))

    def answer(self, record: dict[str, Any]) -> str:
        named = pair_up(record, 'keypoint_names', 'keypoints')
        return self.write_phrases(record, [(name, [point]) for name, point in named])
