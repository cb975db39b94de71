"""MMDetection's CocoDataset on drawn shapes: detection and instance segmentation without a download."""

import os
from typing import Any

from mmengine.registry import DATASETS

from .drawn_dataset import SPLITS
from .shapes_coco import write_shapes_coco
from .shapes_drawing import PALETTE
from .shapes_scene import SHAPES


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
    """Draw the set if it is not there, see :func:`write_shapes_coco`, and open one split of it.

    Metrics read the same files: ``val_evaluator = dict(type='CocoMetric', ann_file=f'{folder}/annotations/val.json')``.

    Args:
        folder (str | os.PathLike): Where the set is or comes to be; the same for both splits, as are the numbers.
        split (str): ``'train'`` or ``'val'``. Defaults to ``'train'``.
        num_train (int): Training images. Defaults to 1000.
        num_val (int): Validation images. Defaults to 200.
        image_size (int): The longest side in pixels, >= 24. Defaults to 96.
        seed (int): Of all draws. Defaults to 0.
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
