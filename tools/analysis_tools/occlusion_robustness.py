"""Measures the accuracy of classifiers on images with hidden patches, with and without merging at inference.

After Naseer et al., "Intriguing Properties of Vision Transformers" (https://arxiv.org/abs/2105.10497): 0, 10, ... 90%
of the patches of each image are hidden, at random, the most salient ones first, or the least salient ones first. Hidden
pixels get the mean colour, which is 0 in normalised images. All classifiers see the same hidden patches.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mergemix_mm.engine import launch
from mergemix_mm.engine.measuring import (
    TrainedClassifier,
    add_arguments,
    load_classifier,
    load_classifiers,
    write_results,
)
from mergemix_mm.functional import hide_patches
from mergemix_mm.models.vision_encoders import UnsupportedEncoderError, build_vision_encoder, score_patches
from mergemix_mm.visualization import draw_accuracy_curves

PERCENT = range(0, 100, 10)
ORDERS = {'random': 'at random', 'salient': 'most salient first', 'background': 'least salient first'}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, 'work_dirs/occlusion_robustness')
    parser.add_argument(
        '--orders',
        nargs='+',
        choices=ORDERS,
        default=list(ORDERS),
        help='which patches are hidden first (default: all)',
    )
    parser.add_argument(
        '--scorer',
        nargs=2,
        metavar=('CONFIG', 'CHECKPOINT'),
        help='the vision transformer whose patches are hidden, and whose attention says which are salient: that of the '
        'class token, at 3/4 of the depth, without merging (default: the first classifier)',
    )
    parser.add_argument('--seed', type=int, default=0, help='of the random order (default: %(default)s)')
    return parser.parse_args(argv)


@torch.no_grad()
def priorities(scorer: TrainedClassifier, orders: Sequence[str], seed: int) -> tuple[dict[str, Tensor], tuple, Tensor]:
    """How early each patch of each test image is hidden.

    Args:
        scorer (TrainedClassifier): A vision transformer.
        orders (Sequence[str]): Names of `ORDERS`.
        seed (int): Of the random order.

    Returns:
        tuple: For each order [N, L'] on the CPU, higher is earlier; the patch grid; the labels [N].

    Raises:
        LaunchError: If the scorer is not a vision transformer that can be scored.
    """
    saliency, labels, grid = [], [], (0, 0)
    try:
        encoder = build_vision_encoder(scorer.model.backbone)
    except UnsupportedEncoderError as error:
        raise launch.LaunchError(f'--scorer {scorer.name}: {error}') from None
    for images, truth in scorer.batches():
        scores = score_patches(encoder, images, num_merge=0)
        grid = scores.grid
        saliency.append(scores.saliency.cpu())
        labels.append(truth.cpu())
    found = torch.cat(saliency)
    # NumPy's draws do not depend on the batch size.
    drawn = torch.from_numpy(np.random.default_rng(seed).random(found.shape, dtype=np.float32))
    given = {'random': drawn, 'salient': found, 'background': -found}
    return {order: given[order] for order in orders}, grid, torch.cat(labels)


@torch.no_grad()
def accuracies(
    classifier: TrainedClassifier, order: dict[str, Tensor], grid: tuple[int, int], labels: Tensor
) -> dict[tuple[str, bool], list[float]]:
    """Top-1 accuracy in percent for each of `PERCENT`, by the order and whether tokens are merged.

    Raises:
        LaunchError: If the test images of this classifier are not those of the scorer, or do not fit its patches.
    """
    num_patches = grid[0] * grid[1]
    counts = [percent * num_patches // 100 for percent in PERCENT]
    right = {(name, merge): [0] * len(counts) for name in order for merge in classifier.modes}
    done = 0
    for images, truth in classifier.batches():
        rows = slice(done, done + len(images))
        if not torch.equal(truth.cpu(), labels[rows]):
            raise launch.LaunchError(
                f'CONFIG of {classifier.name}: its test images are not those of the first classifier or --scorer, '
                'whose patches are hidden: give all configs the same test data in the same order'
            )
        done += len(images)
        for name, priority in order.items():
            for place, count in enumerate(counts):
                try:
                    hidden = hide_patches(images, priority[rows].to(images.device), count, grid)
                except ValueError as error:
                    raise launch.LaunchError(f'CONFIG of {classifier.name}: {error}') from None
                for merge in classifier.modes:
                    with classifier.merging(merge):
                        predicted = classifier.logits(hidden).argmax(1)
                    right[name, merge][place] += int((predicted == truth).sum())
    return {key: [100 * number / done for number in numbers] for key, numbers in right.items()}


def main(argv: Sequence[str] | None = None) -> dict:
    """Measure, print the table, and write table, numbers and curves.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.

    Returns:
        dict: The content of the JSON file.
    """
    args = parse_args(argv)
    classifiers = load_classifiers(args)
    scorer = classifiers[0] if args.scorer is None else load_classifier(*args.scorer, args, '--scorer')
    order, grid, labels = priorities(scorer, args.orders, args.seed)
    results: list[dict] = []
    curves: dict[str, dict[str, list[float]]] = {ORDERS[name]: {} for name in order}
    dashed = {}
    for classifier in classifiers:
        for (name, merge), values in accuracies(classifier, order, grid, labels).items():
            row = dict(model=classifier.name, merged_tokens=classifier.merged_tokens(merge), order=name)
            results.append(dict(row, top1=values, mean=float(np.mean(values))))
            curves[ORDERS[name]][classifier.curve_name(merge)] = values
            if merge:
                dashed[classifier.curve_name(True)] = classifier.name
    # All rows of an order stand together, so that classifiers are compared from line to line.
    results.sort(key=lambda row: args.orders.index(row['order']))
    rows = [
        [row['model'], row['merged_tokens'], ORDERS[row['order']]]
        + [f'{value:.2f}' for value in (*row['top1'], row['mean'])]
        for row in results
    ]
    settings = dict(
        classifiers=args.classifiers,
        scorer=args.scorer or args.classifiers[:2],
        seed=args.seed,
        images=len(labels),
        patch_grid=grid,
        hidden_percent=list(PERCENT),
        hidden_patches=[percent * grid[0] * grid[1] // 100 for percent in PERCENT],
    )
    header = ('model', 'merged tokens', 'hidden', *(f'{percent}%' for percent in PERCENT), 'mean')
    figure = draw_accuracy_curves(list(PERCENT), curves, 'hidden patches [%]', dashed=dashed)
    write_results(args.output_dir, 'occlusion', header, rows, dict(settings, results=results), figure)
    return dict(settings, results=results)


if __name__ == '__main__':
    main()
