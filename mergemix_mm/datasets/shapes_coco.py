"""Coloured shapes on clutter as a set for detection in COCO's format: images, boxes and masks in a folder."""

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from ..utils.files import replaced_folder
from .drawn_dataset import MIN_IMAGE_SIZE, SPLITS
from .shapes_drawing import PALETTE, box_around, draw_clutter, draw_thing, to_uint8
from .shapes_scene import SHAPES

GRIDS = (2, 3, 4)  # Cells per side, one of them per image: the things of an image are large, medium or small.
MAX_THINGS = 6
_DESCRIPTION = 'mergemix_mm: drawn shapes'


def write_shapes_coco(
    folder: str | os.PathLike, num_train: int = 1000, num_val: int = 200, image_size: int = 96, seed: int = 0
) -> None:
    """Draw the set into a folder that does not exist yet; one that holds this very set is left as it is.

    An image shows one to six things in the cells of a 2 x 2, 3 x 3 or 4 x 4 grid, of six shapes (the categories) and
    six colours, on clutter in the same colours; they do not overlap. An image depends on seed, split and its number
    alone. The layout is ``train/000000.png``, ``val/...``, ``annotations/train.json``, ``annotations/val.json``; masks
    are run-length encoded. The folder appears when everything is drawn, also where several processes draw at once.

    Args:
        folder (str | os.PathLike): Where to write.
        num_train (int): Training images, >= 1. Defaults to 1000.
        num_val (int): Validation images, >= 1. Defaults to 200.
        image_size (int): Height and width in pixels, >= 24. Defaults to 96.
        seed (int): Of all draws, >= 0; numpy's global state plays no part. Defaults to 0.

    Raises:
        ValueError: If a number is outside its range.
        FileExistsError: If the folder holds anything else.
        ImportError: If pycocotools is missing.
    """
    settings = dict(num_train=num_train, num_val=num_val, image_size=image_size, seed=seed)
    for key, least in dict(num_train=1, num_val=1, image_size=MIN_IMAGE_SIZE, seed=0).items():
        value = settings[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f'drawn shapes: {key}={value!r} must be an integer of at least {least}.')
    folder = Path(folder)
    if _is_drawn(folder, settings):
        return
    with replaced_folder(folder, keep=True) as drawn:  # Another process may be faster.
        for split, length in zip(SPLITS, (num_train, num_val), strict=True):
            _write_split(drawn, split, length, settings)


def _is_drawn(folder: Path, settings: dict) -> bool:
    """Whether the folder holds the set with these settings; an error if it holds another one or something else."""
    if not folder.exists():
        return False
    annotations = folder / 'annotations' / f'{SPLITS[-1]}.json'
    info = json.loads(annotations.read_text()).get('info', {}) if annotations.is_file() else {}
    if info.get('description') != _DESCRIPTION:
        raise FileExistsError(f'{folder} exists and is no set of drawn shapes: name another folder')
    if info['settings'] != settings:
        raise FileExistsError(
            f'{folder} holds shapes drawn with {info["settings"]}, not with {settings}: name another folder, or remove '
            'this one'
        )
    return True


def _write_split(folder: Path, split: str, length: int, settings: dict) -> None:
    (folder / split).mkdir()
    images, annotations = [], []
    for index in range(length):
        rng = np.random.default_rng((settings['seed'], SPLITS.index(split), index))
        image, things = draw_shapes(settings['image_size'], rng)
        name = f'{index:06}.png'
        Image.fromarray(image).save(folder / split / name)
        images.append(dict(id=index, file_name=name, height=image.shape[0], width=image.shape[1]))
        for label, mask in things:
            annotations.append(dict(id=len(annotations) + 1, image_id=index, **_annotation(label, mask)))
    content = dict(
        info=dict(description=_DESCRIPTION, settings=settings),
        images=images,
        annotations=annotations,
        categories=[dict(id=label + 1, name=name) for label, name in enumerate(SHAPES)],
    )
    target = folder / 'annotations' / f'{split}.json'
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(content))


def draw_shapes(size: int, rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Draw one image.

    Args:
        size (int): Height and width in pixels.
        rng (np.random.Generator): Draws everything.

    Returns:
        tuple: image [size, size, 3] uint8 in RGB, and per thing the index of its shape in `SHAPES` and its mask [size,
        size] bool.
    """
    canvas, things, colors = draw_clutter(size, rng), [], tuple(PALETTE)
    grid = GRIDS[rng.integers(len(GRIDS))]
    cells = rng.permutation(grid * grid)[: rng.integers(1, min(MAX_THINGS, grid * grid) + 1)]
    for cell in cells:
        color, label = colors[rng.integers(len(colors))], int(rng.integers(len(SHAPES)))
        things.append((label, draw_thing(canvas, color, SHAPES[label], divmod(int(cell), grid), grid, rng)))
    return to_uint8(canvas), things


def _annotation(label: int, mask: np.ndarray) -> dict:
    """COCO's entry for a thing, without its ids."""
    try:
        from pycocotools.mask import encode
    except ImportError as error:
        raise ImportError(
            "drawn shapes: pycocotools, which encodes the masks, is missing; run 'pip install -e .[detection]'."
        ) from error
    x1, y1, x2, y2 = box_around(mask)
    runs = encode(np.asfortranarray(mask, dtype=np.uint8))
    return dict(
        category_id=label + 1,
        bbox=[x1, y1, x2 - x1, y2 - y1],
        area=int(mask.sum()),
        iscrowd=0,
        segmentation=dict(size=runs['size'], counts=runs['counts'].decode('ascii')),
    )
