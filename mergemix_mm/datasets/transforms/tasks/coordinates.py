"""Tasks that read or write boxes and key points, as text: referring expressions, detection, layout, texts and poses."""

import re
from typing import Any

from mmengine.registry import TRANSFORMS

from .base import CoordinateTask, Rows, pair_up


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


@TRANSFORMS.register_module()
class DetectionTask(CoordinateTask):
    """``label``, the name of a class -> ``boxes`` of all its objects, in one bracket.

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


@TRANSFORMS.register_module()
class GroundedCaptionTask(CoordinateTask):
    """An image -> a caption with the boxes of each object after its phrase, ``<p>a red ring</p>[...]``.

    ``phrases`` of a record are pairs of a phrase and its boxes. They are marked in its ``caption``, where they must
    occur in this order. For a record without a caption, the answer consists of the phrases.

    Args:
        instruction (str, optional): A text without placeholders. Defaults to ``'default'``, SPHINX's; None shows only
            the image.
        **kwargs: ``decimals`` and ``align`` of :class:`CoordinateTask`.
    """

    TASK = 'grounded_caption'
    FIELDS = ('phrases',)
    INSTRUCTION = 'Describe the image concisely. Include the bounding box for each mentioned object.'

    def boxes(self, record: dict[str, Any]) -> Rows:
        return [box for _, boxes in record['phrases'] for box in boxes]

    def answer(self, record: dict[str, Any]) -> str:
        if 'caption' not in record:
            return self.write_phrases(record, record['phrases'])
        caption, written, end = record['caption'], '', 0
        for phrase, boxes in record['phrases']:
            # Whole words only, after the previous phrase: "a cat" is not found in "a caterpillar".
            found = re.compile(rf'(?<!\w){re.escape(phrase)}(?!\w)').search(caption, end)
            if found is None:
                raise ValueError(f'the phrase {phrase!r} does not come in {caption[end:]!r}, the rest of the caption')
            written += caption[end : found.start()] + self.write_phrase(record, phrase, boxes)
            end = found.end()
        return written + caption[end:]


@TRANSFORMS.register_module()
class LayoutTask(CoordinateTask):
    """A page -> the name of each kind of region with its boxes: ``<p>title</p>[...] <p>text</p>[...;...]``.

    A record has ``boxes`` and ``labels``, one name for each box. Kinds come in the order of their first region.

    Args:
        instruction (str, optional): A text without placeholders. Defaults to ``'default'``, SPHINX's; None shows only
            the image.
        **kwargs: ``decimals`` and ``align`` of :class:`CoordinateTask`.
    """

    TASK = 'layout'
    FIELDS = ('labels', 'boxes')
    INSTRUCTION = 'Detect the layout of the document in the image.'

    def answer(self, record: dict[str, Any]) -> str:
        # A dict keeps the order in which its keys came first.
        by_label: dict[str, list] = {}
        for label, box in pair_up(record, 'labels', 'boxes'):
            by_label.setdefault(label, []).append(box)
        return self.write_phrases(record, list(by_label.items()))


@TRANSFORMS.register_module()
class TextSpottingTask(CoordinateTask):
    """An image -> each text in it with its box: ``<p>EXIT</p>[...] <p>open</p>[...]``.

    A record has ``boxes`` and ``texts``, one text for each box.

    Args:
        instruction (str, optional): A text without placeholders. Defaults to ``'default'``, SPHINX's; None shows only
            the image.
        **kwargs: ``decimals`` and ``align`` of :class:`CoordinateTask`.
    """

    TASK = 'text_spotting'
    FIELDS = ('texts', 'boxes')
    INSTRUCTION = 'Please detect all texts and provide their bounding box coordinate.'

    def answer(self, record: dict[str, Any]) -> str:
        return self.write_phrases(record, [(text, [box]) for text, box in pair_up(record, 'texts', 'boxes')])


@TRANSFORMS.register_module()
class PoseTask(CoordinateTask):
    """``box``, the region of a person -> the name and place of each key point: ``<p>nose</p>[0.500,0.250] ...``.

    A record has ``keypoints`` ([n, 2] in pixels, only annotated ones) and ``keypoint_names``, one name for each.

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
