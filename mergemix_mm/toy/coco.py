"""Coloured shapes on clutter as a data set for detection in COCO's format: images, boxes and masks in a folder."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS
from PIL import Image

from ..utils.files import recover_folder, replaced_folder
from .conversations import MIN_IMAGE_SIZE, SPLITS
from .drawing import PALETTE, box_around, draw_clutter, draw_thing, to_uint8
from .scenes import SHAPES

# Cells per side; an image has one of these grids, so its things are large, medium or small.
GRIDS = (2, 3, 4)
MAX_THINGS = 6
# In a varied set, images with these numbers modulo 8 are special in the way that some images of COCO are.
CROWD, GRAY, EMPTY, CUT = 1, 2, 3, 4
CROWD_GRID = 3  # Things per side of a crowd.
OVERHANG = 0.4  # In pixels. COCO's boxes overhang their images a little, as their polygons are rounded.
_DESCRIPTION = 'mergemix_mm: drawn shapes'


def write_shapes_coco(
    folder: str | os.PathLike,
    num_train: int = 1000,
    num_val: int = 200,
    image_size: int = 96,
    seed: int = 0,
    varied: bool = True,
) -> None:
    """Draw the set into a new folder; a folder that already holds this set is left unchanged.

    An image shows one to six things in the cells of a grid with 2, 3 or 4 cells along its shorter side, of six shapes
    (the categories) and six colours, on clutter in the same colours; they do not overlap. An image depends on seed,
    split and its number only. The layout is ``train/000000.png``, ``val/...``, ``annotations/train.json``,
    ``annotations/val.json``; masks are run-length encoded. The folder appears only when everything is drawn, even if
    several processes draw at once.

    A varied set has what real COCO has. Heights and widths differ. Of eight images, the second shows a crowd (one
    annotation with ``iscrowd=1`` and uncompressed run lengths), the third is a grayscale file, the fourth shows nothing
    and has no annotation, and the fifth ends in the middle of a thing. Boxes of things at the right or the lower border
    overhang by 0.4 pixels.

    Args:
        folder (str | os.PathLike): Where to write.
        num_train (int): Training images, >= 1. Defaults to 1000.
        num_val (int): Validation images, >= 1. Defaults to 200.
        image_size (int): The longest side in pixels, >= 24; the shortest is half of it, or 24. Defaults to 96.
        seed (int): Seed of all draws, >= 0; NumPy's global state is not used. Defaults to 0.
        varied (bool): False draws squares of ``image_size``, with one to six whole things each. Defaults to True.

    Raises:
        ValueError: If an argument is outside its range.
        FileExistsError: If the folder holds anything else.
        ImportError: If pycocotools is missing.
    """
    settings = dict(num_train=num_train, num_val=num_val, image_size=image_size, seed=seed, varied=varied)
    for key, least in dict(num_train=1, num_val=1, image_size=MIN_IMAGE_SIZE, seed=0).items():
        value = settings[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f'drawn shapes: {key}={value!r} must be an integer of at least {least}.')
    if not isinstance(varied, bool):
        raise ValueError(f'drawn shapes: varied={varied!r} must be True or False.')
    folder = Path(folder)
    # A process that was stopped while it replaced the folder may have left it under another name.
    recover_folder(folder)
    if _is_drawn(folder, settings):
        return
    with replaced_folder(folder, keep=True) as drawn:  # Another process may be faster.
        for split, length in zip(SPLITS, (num_train, num_val), strict=True):
            _write_split(drawn, split, length, settings)


def _is_drawn(folder: Path, settings: dict) -> bool:
    """Whether the folder holds the set with these settings; another set or other files are an error."""
    if not folder.exists():
        return False
    annotations = folder / 'annotations' / f'{SPLITS[-1]}.json'
    info = json.loads(annotations.read_text()).get('info', {}) if annotations.is_file() else {}
    if info.get('description') != _DESCRIPTION:
        raise FileExistsError(f'{folder} exists and is not a set of drawn shapes: name another folder')
    if info['settings'] != settings:
        raise FileExistsError(
            f'{folder} holds shapes drawn with {info["settings"]}, not with {settings}: name another folder, or remove '
            'this one'
        )
    return True


def _write_split(folder: Path, split: str, length: int, settings: dict) -> None:
    (folder / split).mkdir()
    images: list[dict] = []
    annotations: list[dict] = []
    for index in range(length):
        rng = np.random.default_rng((settings['seed'], SPLITS.index(split), index))
        image, things = _draw(index, settings, rng)
        name = f'{index:06}.png'
        Image.fromarray(image).save(folder / split / name)
        images.append(dict(id=index, file_name=name, height=image.shape[0], width=image.shape[1]))
        for label, mask, crowd in things:
            thing = _annotation(label, mask, crowd, overhang=settings['varied'])
            annotations.append(dict(id=len(annotations) + 1, image_id=index, **thing))
    content = dict(
        info=dict(description=_DESCRIPTION, settings=settings),
        images=images,
        annotations=annotations,
        categories=[dict(id=label + 1, name=name) for label, name in enumerate(SHAPES)],
    )
    target = folder / 'annotations' / f'{split}.json'
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(content))


def _draw(
    index: int, settings: dict, rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[int, np.ndarray, bool]]]:
    """The image of this number, [H, W, 3] or [H, W] uint8, and the things on it: label, mask, whether it is a crowd."""
    size = settings['image_size']
    if not settings['varied']:
        image, drawn = draw_shapes(size, rng)
        return image, [(*thing, False) for thing in drawn]
    size = tuple(int(side) for side in rng.integers(max(MIN_IMAGE_SIZE, size // 2), size + 1, 2))
    kind = index % 8
    if kind == EMPTY:
        return to_uint8(draw_clutter(size, rng)), []
    image, drawn = draw_shapes(size, rng, crowd=kind == CROWD)
    things = [(*thing, kind == CROWD and i == 0) for i, thing in enumerate(drawn)]
    if kind == GRAY:
        image = np.asarray(Image.fromarray(image).convert('L'))
    if kind == CUT:
        left, _, right, _ = max((box_around(mask) for _, mask, _ in things), key=lambda box: box[2])
        end = max((left + right) // 2, MIN_IMAGE_SIZE)
        image = image[:, :end]
        things = [(label, mask[:, :end], crowd) for label, mask, crowd in things if mask[:, :end].any()]
    return image, things


def draw_shapes(
    size: int | tuple[int, int], rng: np.random.Generator, crowd: bool = False
) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Draw one image.

    Args:
        size (int | tuple[int, int]): Height and width in pixels; a number stands for both.
        rng (np.random.Generator): Source of all random numbers.
        crowd (bool): Whether the first thing is a crowd of nine small ones with one mask. Defaults to False.

    Returns:
        tuple: image [H, W, 3] uint8 in RGB, and per thing the index of its shape in `SHAPES` and its mask [H, W] bool.
    """
    canvas, colors = draw_clutter(size, rng), tuple(PALETTE)
    things: list[tuple[int, np.ndarray]] = []
    grid = GRIDS[0] if crowd else GRIDS[rng.integers(len(GRIDS))]
    shape = canvas.shape[:2]
    rows, columns = (length * grid // min(shape) for length in shape)
    cells = rng.permutation(rows * columns)[: rng.integers(1, min(MAX_THINGS, rows * columns) + 1)]
    for cell in cells:
        color, label = colors[rng.integers(len(colors))], int(rng.integers(len(SHAPES)))
        row, column = divmod(int(cell), columns)
        if crowd and not things:
            fine = grid * CROWD_GRID
            places = [(row * CROWD_GRID + i, column * CROWD_GRID + j) for i, j in np.ndindex(CROWD_GRID, CROWD_GRID)]
            mask = np.any([draw_thing(canvas, color, SHAPES[label], place, fine, rng) for place in places], axis=0)
        else:
            mask = draw_thing(canvas, color, SHAPES[label], (row, column), grid, rng)
        things.append((label, mask))
    return to_uint8(canvas), things


def _annotation(label: int, mask: np.ndarray, crowd: bool, overhang: bool) -> dict:
    """COCO's entry for a thing, without its ids."""
    try:
        from pycocotools.mask import encode
    except ImportError as error:
        raise ImportError(
            "drawn shapes: pycocotools, which encodes the masks, is missing; run 'pip install -e .[detection]'."
        ) from error
    x2: float
    y2: float
    x1, y1, x2, y2 = box_around(mask)
    height, width = mask.shape
    if overhang:
        x2, y2 = (end + OVERHANG if end == border else end for end, border in ((x2, width), (y2, height)))
    if crowd:
        runs = dict(size=list(mask.shape), counts=_run_lengths(mask))
    else:
        runs = encode(np.asfortranarray(mask, dtype=np.uint8))
        runs['counts'] = runs['counts'].decode('ascii')
    return dict(
        category_id=label + 1,
        bbox=[x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
        area=int(mask.sum()),
        iscrowd=int(crowd),
        segmentation=dict(size=runs['size'], counts=runs['counts']),
    )


def _run_lengths(mask: np.ndarray) -> list[int]:
    """Alternating lengths of runs of False and True, column by column, False first: COCO's uncompressed form."""
    flat = np.concatenate([[False], mask.flatten(order='F')])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], ends, [mask.size]])).tolist()


@DATASETS.register_module(name='ShapesCocoDataset')
def shapes_coco_dataset(
    folder: str | os.PathLike,
    split: str = 'train',
    num_train: int = 1000,
    num_val: int = 200,
    image_size: int = 96,
    seed: int = 0,
    varied: bool = True,
    **kwargs,
) -> Any:
    """Draw the set unless it exists, see :func:`write_shapes_coco`, and open one split of it.

    Metrics read the same files: ``val_evaluator = dict(type='CocoMetric', ann_file=f'{folder}/annotations/val.json')``.

    Args:
        folder (str | os.PathLike): Where the set is or will be; use the same folder and numbers for both splits.
        split (str): ``'train'`` or ``'val'``. Defaults to ``'train'``.
        num_train (int): Training images. Defaults to 1000.
        num_val (int): Validation images. Defaults to 200.
        image_size (int): The longest side in pixels, >= 24. Defaults to 96.
        seed (int): Seed of all draws. Defaults to 0.
        varied (bool): Whether images differ in size, and crowds, grayscale files and images that show nothing are among
            them, as in COCO; False makes them squares with one to six things each. Defaults to True.
        **kwargs: Further arguments of MMDetection's ``CocoDataset``, such as ``pipeline``, ``indices`` or
            ``filter_cfg``. ``test_mode`` defaults to True on the val split.

    Returns:
        CocoDataset: its classes are the six shapes.

    Raises:
        ValueError: If an argument is outside its range.
        FileExistsError: If the folder holds anything else.
        ImportError: If MMDetection or pycocotools is missing.
    """
    if split not in SPLITS:
        raise ValueError(f"ShapesCocoDataset: split={split!r} is unknown; use split='train' or split='val'.")
    try:
        from mmdet.datasets import CocoDataset
    except ImportError as error:
        raise ImportError(
            f"ShapesCocoDataset: MMDetection cannot be imported ({error}); run 'pip install -e .[detection]'."
        ) from error
    write_shapes_coco(folder, num_train, num_val, image_size, seed, varied)
    palette = [tuple(int(255 * value) for value in color) for color in PALETTE.values()]
    kwargs = dict(test_mode=split == 'val', metainfo=dict(classes=SHAPES, palette=palette)) | kwargs
    return CocoDataset(
        data_root=str(folder), ann_file=f'annotations/{split}.json', data_prefix=dict(img=split), **kwargs
    )
