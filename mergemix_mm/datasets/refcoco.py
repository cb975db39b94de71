"""RefCOCO, RefCOCO+ and RefCOCOg: words for one object of an image (https://github.com/lichengunc/refer)."""

import os
from typing import Any

import numpy as np
from mmengine.registry import DATASETS

from ..utils.text import quoted
from .base import RecordDataset
from .io.coco_file import CocoFile, find_places, is_id
from .io.fields import check_keys
from .io.json_records import JsonRecords
from .io.plain_pickle import load_plain_pickle


@DATASETS.register_module()
class RefCOCODataset(RecordDataset):
    """One expression and the box of its object per record, from the official files.

    A record holds ``images``, ``size``, ``image_id``, ``expression`` and ``caption`` (the same text), ``box`` (xyxy in
    pixels), ``label`` (its category), ``split``, ``ref_id`` and ``sent_id``: for ``GroundingTask`` (from words to the
    box) and ``RegionCaptionTask`` (the other way).

    Args:
        ref_file (str): The pickle ``'refs(unc).p'``, ``'refs(umd).p'`` or ``'refs(google).p'``, or the same list of
            references as JSON, relative to ``data_root``. A pickle may hold only plain data: nothing in it is executed.
        ann_file (str): The annotations in COCO's layout. Defaults to ``'instances.json'``.
        split (str): A split of the file: ``'train'``, ``'val'``, ``'testA'``, ``'testB'``, ``'test'``. Defaults to
            ``'val'``.
        test_mode (bool, optional): As for :class:`RecordDataset`. Defaults to None: False only for ``'train'``.
        **kwargs: Further arguments of :class:`RecordDataset`; ``data_prefix=dict(img_path='train2014')``.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the pickle holds anything but plain data, a file has another layout, the split is unknown, or a
            reference names an annotation that does not exist.
        RecordError: If a box is outside its image by a pixel or more or has no width or height, or the image cannot be
            read; names file and ids.

    Examples:
        >>> dataset = RefCOCODataset('refcoco/refs(unc).p', 'refcoco/instances.json', split='testA', data_root='data',
        ...                          data_prefix=dict(img_path='coco/train2014'), pipeline=[dict(type='GroundingTask')])
    """

    def __init__(
        self,
        ref_file: str,
        ann_file: str = 'instances.json',
        split: str = 'val',
        test_mode: bool | None = None,
        **kwargs,
    ) -> None:
        self.ref_file = ref_file
        self.ann_file = ann_file
        self.split = split
        super().__init__(test_mode=split != 'train' if test_mode is None else test_mode, **kwargs)

    def open_records(self) -> list[tuple[int, int, str]]:
        path = os.path.join(self.data_root, self.ref_file)
        refs = _read_refs(path)
        chosen = [ref for ref in refs if ref['split'] == self.split]
        if not chosen:
            found = sorted({str(ref['split']) for ref in refs})
            raise ValueError(f'RefCOCODataset: split={self.split!r} is unknown; {path} has {found}.')
        self.coco = CocoFile(os.path.join(self.data_root, self.ann_file), keep=lambda annotation: True)
        self.ref_ids = [ref['ref_id'] for ref in chosen]
        ann_ids = np.array([ref['ann_id'] for ref in chosen], dtype=np.int64)
        self.places = find_places(self.coco.ids, ann_ids, f'{self.coco.path}: annotations')
        return [
            (number, sentence['sent_id'], sentence['sent'])
            for number, ref in enumerate(chosen)
            for sentence in ref['sentences']
        ]

    def source(self, index: int) -> str:
        number, sent_id, _ = self.records[index]
        return f'{os.path.join(self.data_root, self.ref_file)}: ref {self.ref_ids[number]}, sentence {sent_id}'

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(str(sentence)) for _, _, sentence in self.records])

    def load_record(self, index: int) -> dict[str, Any]:
        number, sent_id, sentence = self.records[index]
        place = int(self.places[number])
        annotation = self.coco.annotations[place]
        fields = self.coco.image_fields(place)
        return fields | dict(
            expression=sentence,
            caption=sentence,
            box=self.coco.boxes([annotation], fields.get('size'))[0],
            label=self.coco.category(annotation)['name'],
            split=self.split,
            ref_id=self.ref_ids[number],
            sent_id=sent_id,
        )


def _read_refs(path: str) -> list[dict]:
    """The references of a file, checked."""
    if path.endswith('.json'):
        records = JsonRecords(path)
        refs = [records[place] for place in range(len(records))]
    else:
        refs = load_plain_pickle(path)
    # JsonRecords has checked it for JSON; a pickle may hold anything.
    if not isinstance(refs, list):
        raise ValueError(f'{path}: must hold a list of references, found a {type(refs).__name__}.')
    for number, ref in enumerate(refs):
        try:
            check_keys(ref, {'ref_id', 'ann_id', 'split', 'sentences'})
            if not is_id(ref['ann_id']):
                raise ValueError(f'has ann_id={quoted(ref["ann_id"])}; it must be a whole number from 0 of 64 bits')
            for sentence in ref['sentences']:
                check_keys(sentence, {'sent_id', 'sent'})
        except (TypeError, ValueError) as error:
            raise ValueError(f'{path}: reference {number} {error}') from error
    return refs
