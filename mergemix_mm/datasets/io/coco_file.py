"""Files in COCO's layout (https://cocodataset.org/#format-data), read lazily."""

from array import array
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from ...utils.text import DataError, quoted
from .boxes import clip_to_image
from .fields import check_keys
from .json_records import JsonRecords

# In pixels. Larger numbers are not coordinates, and integers above 2**1023 do not fit into floating point numbers.
MAX_COORDINATE = 1e9


class CocoFile:
    """Images, annotations and categories of one file, which may be larger than the memory.

    Memory holds only byte offsets and numbers: some 70 bytes per annotation.

    Args:
        path (str): A JSON file with ``images`` and ``annotations``.
        keep (Callable[[dict], bool]): Whether an annotation counts; see ``kept``.

    Attributes:
        annotations (JsonRecords): One entry each.
        kept (np.ndarray): [N] int64, the places of the annotations that count.
        ids (np.ndarray): [N] int64, the ids of all annotations.
        image_places (np.ndarray): [N] int64, the place of the image of each annotation in ``images``.
        category_ids (np.ndarray): [N] int64; -1 for an annotation without a category.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not valid JSON, lacks images or annotations, has an entry without its ids or with an
            id of more than 64 bits, has an image id twice, or an annotation of an image that is not listed.
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
        found = {}
        for place in range(len(records)):
            category = records[place]
            where = f'{records.source(place)}: a category'
            try:
                check_keys(category, {'id', 'name'})
            except ValueError as error:
                raise DataError(f'{where} {error}.') from error
            if not is_id(category['id']) or not isinstance(category['name'], str):
                raise DataError(
                    f'{where} needs an id (a whole number) and a name; it has {_fields(category, ("id", "name"))}.'
                )
            if category['id'] in found:
                raise DataError(f'{where} has the id {category["id"]}, which is that of another one.')
            found[category['id']] = category
        return found

    def category(self, annotation: dict) -> dict:
        """The category of an annotation."""
        check_keys(annotation, {'category_id'})
        category = annotation['category_id']
        if not is_id(category) or category not in self.categories:
            raise ValueError(f'annotation {annotation["id"]}: there is no category {quoted(category)}')
        return self.categories[category]

    def image_fields(self, place: int) -> dict:
        """The image of an annotation as fields of a record: ``images`` (its file), ``image_id`` and ``size``."""
        image = self.images[int(self.image_places[place])]
        check_keys(image, {'file_name'})
        if not isinstance(image['file_name'], str):
            raise ValueError(f'image {image["id"]}: file_name={quoted(image["file_name"])} must be a text')
        fields = dict(images=[image['file_name']], image_id=image['id'])
        if not {'height', 'width'} <= set(image):
            return fields
        size = (image['height'], image['width'])
        if not all(is_id(side) and side > 0 for side in size):
            raise ValueError(
                f'image {image["id"]}: height and width must be whole numbers of pixels, found {quoted(size)}'
            )
        return fields | dict(size=size)

    @staticmethod
    def boxes(annotations: Sequence[dict], size: tuple[int, int] | None) -> list[list[float]]:
        """The boxes of annotations of one image, xyxy in pixels, clipped to it if its size is known.

        Raises:
            ValueError: If a box is malformed, overhangs the image by a pixel or more, or has no width or height (in the
                file, or inside the image); names the annotation.
        """
        found = []
        for annotation in annotations:
            box = annotation.get('bbox')
            name = f'annotation {annotation["id"]}: bbox={quoted(box)}'
            if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
                raise ValueError(f'{name} must be [x, y, width, height]')
            x, y, width, height = box
            if not width or not height:
                raise ValueError(f'{name} has width or height 0, which is not a target; take it out')
            found += CocoFile.inside([[x, y, x + width, y + height]], size, annotation)
        return found

    @staticmethod
    def inside(rows: list[list[float]], size: tuple[int, int] | None, annotation: dict) -> list[list[float]]:
        """Coordinates of an annotation, clipped to their image; see :func:`clip_to_image`."""
        try:
            return clip_to_image(rows, size)
        except ValueError as error:
            raise ValueError(f'annotation {annotation["id"]}: {error}') from error


def find_places(ids: np.ndarray, wanted: np.ndarray, what: str) -> np.ndarray:
    """The place of each wanted id among all ids.

    Raises:
        ValueError: If an id comes twice, or a wanted id is missing; the message begins with ``what``.
    """
    order = np.argsort(ids, kind='stable')
    ordered = ids[order]
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        raise DataError(f'{what} have the id {twice[0]} more than once.')
    # An id above all others would be placed beyond the end; the next lines find it lost.
    places = np.searchsorted(ordered, wanted).clip(max=len(ids) - 1)
    lost = wanted[ordered[places] != wanted]
    if len(lost):
        raise DataError(f'{what} have no {np.unique(lost)[:5].tolist()}, which are referred to.')
    return order[places]


def _with_numbers(
    path: str,
    key: str,
    names: Sequence[str],
    optional: Sequence[str] = (),
    flag: Callable[[dict], bool] | None = None,
) -> tuple[JsonRecords, np.ndarray]:
    """The records of a key, and some of their numbers, [N, numbers] int64; -1 for an optional one that is missing."""
    # Eight bytes per number; in a list, integers of Python take four times as much.
    columns = array('q')

    def note(raw: dict) -> bool:
        values = [raw.get(name) for name in (*names, *optional)]
        columns.extend(value if value is not None and is_id(value) else -1 for value in values)
        return flag is not None and flag(raw)

    records = JsonRecords(path, flag=note, key=key)
    if not len(records):
        raise DataError(f'{path}: {key} is empty.')
    numbers = np.frombuffer(columns, dtype=np.int64).reshape(len(records), -1)
    unknown = np.flatnonzero((numbers[:, : len(names)] < 0).any(1))
    if len(unknown):
        raise DataError(
            f'{records.source(unknown[0])}: an entry of {key} needs {" and ".join(names)}, whole numbers from 0 that '
            f'fit into 64 bits; it has {_fields(records[unknown[0]], (*names, *optional))}.'
        )
    return records, numbers


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MAX_COORDINATE


def is_id(value) -> bool:
    """Whether a value is a whole number from 0 that fits into 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _fields(raw: dict, names: Sequence[str]) -> str:
    found = {name: raw[name] for name in names if name in raw}
    return f'{quoted(sorted(raw), 200)}, with {quoted(found, 200)}'
