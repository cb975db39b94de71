"""Captions that point to what they mention."""

import re
from typing import Any

from mmengine.registry import TRANSFORMS

from .base import CoordinateTask, Rows


@TRANSFORMS.register_module()
class GroundedCaptionTask(CoordinateTask):
    """An image -> a caption that holds the boxes of each object behind its phrase, ``<p>a red ring</p>[...]``.

    ``phrases`` of a record are pairs of a phrase and its boxes. They are marked in its ``caption``, in which they must
    come in this order; without a caption, the answer is the phrases.

    Args:
        instruction (str, optional): A text without placeholders. Defaults to ``'default'``, SPHINX's; None leaves the
            image alone.
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
            found = re.compile(rf'(?<!\w){re.escape(phrase)}(?!\w)').search(caption, end)
            if found is None:
                raise ValueError(f'the phrase {phrase!r} does not come in {caption[end:]!r}, the rest of the caption')
            written += caption[end : found.start()] + self.write_phrase(record, phrase, boxes)
            end = found.end()
        return written + caption[end:]
