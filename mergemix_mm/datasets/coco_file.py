"""Files in COCO's layout (https://cocodataset.org/#format-data), read lazily."""

from array import array
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from .boxes import clip_to_image
from .conversation_formats import check_keys
from .json_records import JsonRecords


class CocoFile:
    """Images, annotations and categories of one file, which may be larger than the memory.

    Only byte offsets and numbers are held: some 70 bytes per annotation.

    Args:
        path (str): A JSON file with ``images`` and ``annotations``.
        keep (Callable[[dict], bool]): Which annotations count; see ``kept``.

    Attributes:
        annotations (JsonRecords): One entry each.
        kept (np.ndarray): [N] int64, the places of the annotations that count.
        ids, image_places, category_ids (np.ndarray): [N] int64 each; ``category_ids`` is -1 where there is none.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not valid JSON, lacks images or annotations, has an entry without its ids, an
            image id twice, or an annotation of an image that is not listed.
    """

    def __init__(self, path: str, keep: Callable[[dict], bool]) -> None:
        self.path = path
        self.images, image_ids = _with_numbers(path, 'images', ('id',))
        self.annotations, numbers = _with_numbers(path, 'annotations', ('id', 'image_id'), ('category_id',), keep)
        self.kept = np.flatnonzero(self.annotations.flags)
        self.ids, image_of, self.category_ids = numbers.T
        self.image_places = find_places(image_ids[:, 0], image_of, f'{path}: images')

    @cached_property
    def categories(self) -> dict[int, dict]:
        """The categories by their ids."""
        records = JsonRecords(self.path, key='categories')
        found = [records[place] for place in range(len(records))]
        for category in found:
            check_keys(category, {'id', 'name'})
        return {category['id']: category for category in found}

    def category(self, annotation: dict) -> dict:
        """The category of an annotation."""
        check_keys(annotation, {'category_id'})
        if annotation['category_id'] not in self.categories:
            raise ValueError(f'annotation {annotation["id"]}: there is no category {annotation["category_id"]}')
        return self.categories[annotation['category_id']]

    def image_fields(self, place: int) -> dict:
        """What a record holds of the image of an annotation: ``images`` (its file), ``image_id``, ``size``."""
        image = self.images[int(self.image_places[place])]
        check_keys(image, {'file_name'})
        fields = dict(images=[image['file_name']], image_id=image['id'])
        return fields | (dict(size=(image['height'], image['width'])) if {'height', 'width'} <= set(image) else {})

    @staticmethod
    def boxes(annotations: Sequence[dict], size: tuple[int, int] | None) -> list[list[float]]:
        """The boxes of some annotations of an image, xyxy in pixels, clipped to it where its size is known.

        Raises:
            ValueError: If a box overhangs the image by a pixel or more, or is none; names the annotation.
        """
        found = []
        for annotation in annotations:
            box = annotation.get('bbox')
            if not isinstance(box, list) or len(box) != 4:
                raise ValueError(f'annotation {annotation["id"]}: bbox={box!r} must be [x, y, width, height]')
            x, y, width, height = box
            found += CocoFile.inside([[x, y, x + width, y + height]], size, annotation)
        return found

    @staticmethod
    def inside(rows: list[list[float]], size: tuple[int, int] | None, annotation: dict) -> list[list[float]]:
        """Coordinates of an annotation, clipped to their image; see :func:`clip_to_image`."""
        try:
            return rows if size is None else clip_to_image(rows, size)
        except ValueError as error:
            raise ValueError(f'annotation {annotation["id"]}: {error}') from error


def find_places(ids: np.ndarray, wanted: np.ndarray, what: str) -> np.ndarray:
    """The place of each wanted id among all ids.

    Raises:
        ValueError: If an id comes twice, or a wanted one not at all; names ``what`` has them.
    """
    order = np.argsort(ids, kind='stable')
    ordered = ids[order]
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        raise ValueError(f'{what} have the id {twice[0]} more than once.')
    places = np.searchsorted(ordered, wanted).clip(max=len(ids) - 1)
    lost = wanted[ordered[places] != wanted]
    if len(lost):
        raise ValueError(f'{what} have no {np.unique(lost)[:5].tolist()}, which are referred to.')
    return order[places]


def _with_numbers(
    path: str,
    key: str,
    names: Sequence[str],
    optional: Sequence[str] = (),
    flag: Callable[[dict], bool] | None = None,
) -> tuple[JsonRecords, np.ndarray]:
    """The records of a key, and some of their numbers, [N, numbers] int64; -1 for an optional one that is missing."""
    columns = array('q')

    def note(raw: dict) -> bool:
        values = [raw.get(name) for name in (*names, *optional)]
        columns.extend(value if isinstance(value, int) and value >= 0 else -1 for value in values)
        return flag is not None and flag(raw)

    records = JsonRecords(path, flag=note, key=key)
    if not len(records):
        raise ValueError(f'{path}: {key} is empty.')
    numbers = np.frombuffer(columns, dtype=np.int64).reshape(len(records), -1)
    unknown = np.flatnonzero((numbers[:, : len(names)] < 0).any(1))
    if len(unknown):
        raise ValueError(
            f'{records.source(unknown[0])}: an entry of {key} needs {" and ".join(names)}, whole numbers from 0; it '
            f'has {sorted(records[unknown[0]])}.'
        )
    return records, numbers
