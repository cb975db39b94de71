"""Does the saliency of a trained classifier find the object? Per layer and per kind of saliency, against boxes.

The objects come from a file of boxes (--boxes), or from the masks of the dataset (`gt_mask` of DigitsDataset). They
pass through the same pipeline as the images.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mergemix_mm.engine import launch
from mergemix_mm.engine.measuring import TrainedClassifier, add_run_arguments, load_classifier, write_results
from mergemix_mm.evaluation.localization import (
    THRESHOLDS,
    box_overlap,
    mask_box,
    mass_on_object,
    object_in_top,
    object_share,
    saliency_boxes,
)
from mergemix_mm.models.vision_encoders import (
    SALIENCIES,
    UnsupportedEncoderError,
    VisionEncoder,
    build_vision_encoder,
    score_patches,
)
from mergemix_mm.utils.text import quoted

OVERLAP = 0.5
UNIFORM = 'none (uniform)'
HEADER = (
    'layer',
    'saliency',
    'mass on the object',
    "object's area",
    'object in top 20%',
    f'box IoU >= {OVERLAP}',
    'and right class',
    'threshold',
)
# For each image the boxes xyxy in pixels, by the end of its path.
Boxes = dict[str, list[list[float]]]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Mass on the object: share of the saliency on it; by chance, its area. Box: around the largest part of '
        'the map above a threshold (share of its range), right if its IoU with the best true box is at least '
        f'{OVERLAP} ("GT-known"); with the right class as well, it is top-1 localization. The threshold is the best '
        'one of each row on these images (MaxBoxAcc, arXiv 2001.07437), unless --threshold gives one.',
    )
    parser.add_argument('config', help='path of the config of a classifier')
    parser.add_argument('checkpoint', help='its weights')
    parser.add_argument(
        '--boxes',
        type=Path,
        help="bounding_boxes.txt of CUB-200-2011 (its images.txt beside it); a text file of lines 'NAME,x1,y1,x2,y2'; "
        'or a JSON file {NAME: [x1, y1, x2, y2] or a list of such boxes}. A NAME is the end of the path of an '
        'image (default: the gt_mask of the dataset)',
    )
    parser.add_argument('--layers', type=int, nargs='+', help='counted from 1 (default: all with global attention)')
    parser.add_argument(
        '--saliency', nargs='+', choices=SALIENCIES, default=list(SALIENCIES), help='(default: %(default)s)'
    )
    parser.add_argument('--num-merge', type=int, help='patches merged before the layer (default: half, as MergeMix)')
    parser.add_argument('--threshold', type=float, help='of all boxes, in [0, 1) (default: the best one of each row)')
    parser.add_argument('--num-images', type=int, help='only the first ones (default: all)')
    add_run_arguments(parser, 'work_dirs/localization')
    args = parser.parse_args(argv)
    if args.threshold is not None and not 0 <= args.threshold < 1:
        parser.error(f'--threshold {args.threshold} must be in [0, 1)')
    if args.num_images is not None and args.num_images < 1:
        parser.error(f'--num-images {args.num_images} must be at least 1')
    return args


def read_boxes(path: Path) -> Boxes:
    """Read boxes by the names of images.

    Args:
        path (Path): A file of one of the three kinds that ``--boxes`` takes.

    Raises:
        LaunchError: If it is missing, or of another form; the message names the line.
    """
    try:
        if path.suffix == '.json':
            return _boxes_of_json(path)
        lines = [(number, line.strip()) for number, line in enumerate(path.read_text().splitlines(), start=1)]
        lines = [(number, line) for number, line in lines if line]
        return _boxes_with_commas(path, lines) if any(',' in line for _, line in lines) else _boxes_of_cub(path, lines)
    except FileNotFoundError as error:
        raise launch.LaunchError(f'--boxes {path}: there is no file {error.filename}') from None


def _boxes_of_json(path: Path) -> Boxes:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise launch.LaunchError(f'--boxes {path}: not JSON: {error}') from None
    if not isinstance(content, dict):
        raise launch.LaunchError(f'--boxes {path}: {quoted(content)} must map names of images to boxes')
    boxes = {}
    for name, value in content.items():
        several = isinstance(value, list) and all(isinstance(one, list) for one in value)
        boxes[name] = [_box(one, f'{path}: {name}') for one in (value if several else [value])]
    return boxes


def _boxes_with_commas(path: Path, lines: list[tuple[int, str]]) -> Boxes:
    boxes: Boxes = {}
    for number, line in lines:
        name, *values = line.rsplit(',', 4)
        boxes.setdefault(name, []).append(_box(values, f'{path}, line {number}'))
    return boxes


def _boxes_of_cub(path: Path, lines: list[tuple[int, str]]) -> Boxes:
    names = dict(line.split(maxsplit=1) for line in (path.parent / 'images.txt').read_text().splitlines() if line)
    boxes: Boxes = {}
    for number, line in lines:
        key, *values = line.split()
        where = f'{path}, line {number}'
        if key not in names:
            raise launch.LaunchError(f'--boxes {where}: {path.parent / "images.txt"} has no image {quoted(key)}')
        left, top, width, height = _numbers(values, where)
        boxes[names[key]] = [_box([left, top, left + width, top + height], where)]
    return boxes


def _numbers(values: Any, where: str) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != 4 or not np.isfinite(numbers).all():
        raise launch.LaunchError(f'--boxes {where}: {quoted(values)} must be four numbers, in pixels')
    return numbers


def _box(values: Any, where: str) -> list[float]:
    box = _numbers(values, where)
    if box[2] <= box[0] or box[3] <= box[1]:
        raise launch.LaunchError(f'--boxes {where}: {quoted(values)} is not a box: x2 <= x1 or y2 <= y1')
    return box


class ObjectImages(Dataset):
    """The images of a dataset after its pipeline, with the masks of their objects after the same pipeline.

    Args:
        dataset (Dataset): A dataset of MMPretrain.
        boxes (Boxes, optional): The objects. Defaults to None: the ``gt_mask`` of each sample.
        length (int, optional): Only the first samples. Defaults to None: all.
    """

    def __init__(self, dataset: Any, boxes: Boxes | None = None, length: int | None = None) -> None:
        self.dataset = dataset
        self.boxes = boxes
        self.length = min(length or len(dataset), len(dataset))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[dict, list[Tensor]]:
        """The packed sample, and a mask [H, W] bool for each of its objects."""
        sample = self.dataset.get_data_info(index)
        masks = self._own_boxes(sample) if self.boxes is not None else [sample.get('gt_mask')]
        if masks[0] is None:
            raise launch.LaunchError(
                f'CONFIG: samples of {type(self.dataset).__name__} have no gt_mask; name a file of boxes with --boxes'
            )
        return self._run(sample, None), [self._run(sample, mask)['inputs'][0] > 127 for mask in masks]

    def _own_boxes(self, sample: dict) -> list[list[float]]:
        assert self.boxes is not None
        parts = Path(sample['img_path']).as_posix().split('/')
        for start in range(len(parts)):  # The longest name first: names of files repeat in other folders.
            found = self.boxes.get('/'.join(parts[start:]))
            if found:
                return found
        raise launch.LaunchError(f'--boxes: none for the image {sample["img_path"]}')

    def _run(self, sample: dict, shape: list[float] | np.ndarray | None) -> Any:
        """The pipeline, with the image replaced by the mask of an object once it is loaded."""
        results = deepcopy(sample)
        for transform in self.dataset.pipeline.transforms:
            if shape is not None and 'img' in results:
                results['img'], shape = _white_on_black(shape, results['img'].shape), None
            results = transform(results)
        return results


def _white_on_black(shape: list[float] | np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """The image [H, W, 3] of a mask [H, W], or of a box."""
    if isinstance(shape, np.ndarray):
        mask = shape
    else:
        mask = np.zeros(size[:2], dtype=bool)
        left, top = (max(int(np.floor(value)), 0) for value in shape[:2])
        right, bottom = (int(np.ceil(value)) for value in shape[2:])
        mask[top:bottom, left:right] = True
    return np.repeat(np.where(mask, 255, 0).astype(np.uint8)[..., None], 3, axis=-1)


@dataclass
class Row:
    """What one way to score has found, image by image."""

    layer: int | None
    saliency: str
    mass: list[Tensor] = field(default_factory=list)
    top: list[Tensor] = field(default_factory=list)
    overlaps: list[Tensor] = field(default_factory=list)  # [B, thresholds]

    def add(self, saliency: Tensor, grid: tuple[int, int], masks: Tensor, boxes: list[Tensor], args) -> None:
        """Measure a batch: saliency [B, L'], masks [B, H, W] bool, true boxes [M, 4] of each image."""
        share = object_share(masks, grid)
        self.mass.append(mass_on_object(saliency, share))
        self.top.append(object_in_top(saliency, share))
        thresholds = THRESHOLDS if args.threshold is None else [args.threshold]
        found = saliency_boxes(saliency, grid, tuple(masks.shape[-2:]), thresholds)
        self.overlaps.append(torch.stack([box_overlap(one, true) for one, true in zip(found, boxes, strict=True)]))

    def results(self, area: Tensor, correct: Tensor | None, args: argparse.Namespace) -> dict[str, Any]:
        """The numbers of the row; pairs are mean and standard error over the images."""
        right = torch.cat(self.overlaps) >= OVERLAP
        best = int(right.double().mean(dim=0).argmax())
        threshold = THRESHOLDS[best] if args.threshold is None else args.threshold
        return dict(
            layer=self.layer,
            saliency=self.saliency,
            mass_on_object=_mean_and_error(torch.cat(self.mass)),
            area_of_object=float(area.mean()),
            object_in_top20=_mean_and_error(torch.cat(self.top)) if self.layer else None,
            box_accuracy=_mean_and_error(right[:, best]),
            top1_localization=None if correct is None else _mean_and_error(right[:, best] & correct),
            threshold=threshold if self.layer else None,
        )


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    values = values[~values.isnan()].double()
    return float(values.mean()), float(values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0


def global_layers(encoder: VisionEncoder, asked: Sequence[int] | None) -> list[int]:
    """The layers to score, counted from 1.

    Raises:
        LaunchError: If one of those asked for does not exist, or attends within windows.
    """
    known = [number for number, layer in enumerate(encoder.layers, start=1) if layer.is_global]
    if asked and not set(asked) <= set(known):
        raise launch.LaunchError(f'--layers {" ".join(map(str, asked))}: layers that can score are {known}')
    return list(asked or known)


@torch.no_grad()
def measure(classifier: TrainedClassifier, images: ObjectImages, args: argparse.Namespace) -> dict[str, Any]:
    """Measure every kind of saliency in every layer.

    Args:
        classifier (TrainedClassifier): The model.
        images (ObjectImages): What it sees.
        args (argparse.Namespace): The command line.

    Returns:
        dict: ``rows``, the number of ``images``, and of those that are ``without_object``.
    """
    model = classifier.model
    try:
        encoder = build_vision_encoder(model.backbone)
    except UnsupportedEncoderError as error:
        raise launch.LaunchError(f'CONFIG: {error}') from None
    rows = [Row(layer, kind) for layer in global_layers(encoder, args.layers) for kind in args.saliency]
    uniform, areas, known = Row(None, UNIFORM), [], []
    without = 0
    for data, found in _batches(classifier, images):
        kept = [number for number, masks in enumerate(found) if any(bool(mask.any()) for mask in masks)]
        without += len(found) - len(kept)
        if not kept:
            continue
        pixels = data['inputs'][kept]
        objects = [[mask for mask in found[number] if mask.any()] for number in kept]
        boxes = [torch.stack([mask_box(mask) for mask in masks]) for masks in objects]
        whole = torch.stack([_padded(torch.stack(masks).any(dim=0), pixels.shape[-2:]) for masks in objects])
        areas.append(whole.double().mean(dim=(1, 2)))
        known.append(_correct(model, pixels, [data['data_samples'][number] for number in kept]))
        for row in rows:
            assert row.layer is not None
            num_merge = 0 if row.layer == 1 else args.num_merge
            scores = score_patches(encoder, pixels, num_merge, row.layer, saliency=row.saliency)
            row.add(scores.saliency.cpu(), scores.grid, whole, boxes, args)
        uniform.add(torch.ones(len(kept), 1), (1, 1), whole, boxes, args)
    if not areas:
        raise launch.LaunchError('no image shows its object after the pipeline')
    correct = None if any(one is None for one in known) else torch.cat(known)
    area = torch.cat(areas)
    results = [row.results(area, correct, args) for row in [*rows, uniform]]
    return dict(rows=results, images=len(area), without_object=without)


def _batches(classifier: TrainedClassifier, images: ObjectImages) -> Iterator[tuple[dict, list[list[Tensor]]]]:
    """Batches as the model gets them, and the masks of each image's objects."""
    cfg = classifier.cfg.test_dataloader
    loader = DataLoader(images, cfg.get('batch_size', 32), num_workers=cfg.get('num_workers', 0), collate_fn=list)
    with launch.explain_corrupt_images('test'):
        for samples in loader:
            packed = pseudo_collate([sample for sample, _ in samples])
            yield classifier.model.data_preprocessor(packed, False), [masks for _, masks in samples]


def _padded(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask [h, w] with the padding that the data preprocessor gave its image."""
    return F.pad(mask, (0, size[1] - mask.size(1), 0, size[0] - mask.size(0)))


def _correct(model: torch.nn.Module, images: Tensor, samples: list) -> Tensor | None:
    """Whether the class of each image is found [B]; None if they have no labels."""
    if any('gt_label' not in sample for sample in samples):
        return None
    predicted = model.predict(images, samples)
    return torch.tensor([bool((one.gt_label.cpu() == one.pred_label.cpu()).any()) for one in predicted])


def table_rows(results: dict[str, Any]) -> list[list[str | None]]:
    """The cells below `HEADER`."""

    def pair(value: tuple[float, float] | None) -> str | None:
        return None if value is None else f'{value[0]:.3f} ± {value[1]:.3f}'

    return [
        [
            None if row['layer'] is None else str(row['layer']),
            row['saliency'],
            pair(row['mass_on_object']),
            f'{row["area_of_object"]:.3f}',
            pair(row['object_in_top20']),
            pair(row['box_accuracy']),
            pair(row['top1_localization']),
            None if row['threshold'] is None else f'{row["threshold"]:.2f}',
        ]
        for row in results['rows']
    ]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Print the table, and write it with its numbers.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.

    Returns:
        dict: What :func:`measure` returns.
    """
    args = parse_args(argv)
    boxes = None if args.boxes is None else read_boxes(args.boxes)
    # The class is told without merging; --num-merge is that of the scoring pass.
    loading = argparse.Namespace(**vars(args) | dict(num_merge=0))
    classifier = load_classifier(args.config, args.checkpoint, loading, Path(args.config).stem)
    dataset = DATASETS.build(classifier.cfg.test_dataloader.dataset)
    results = measure(classifier, ObjectImages(dataset, boxes, args.num_images), args)
    results['options'] = {key: str(value) for key, value in vars(args).items() if value is not None}
    note = f', {results["without_object"]} more show no object' if results['without_object'] else ''
    print(f'{classifier.name}: {results["images"]} images{note}\n')
    write_results(args.output_dir, Path(args.checkpoint).stem, HEADER, table_rows(results), results)
    return results


if __name__ == '__main__':
    main()
