"""Measures the accuracy of classifiers under FGSM and PGD attacks, with and without merging at inference.

The attacks see the weights and, with merging, the merging (white box). They change every pixel by at most --eps grey
levels of 255, within 0..255: FGSM (https://arxiv.org/abs/1412.6572) with one step, PGD (https://arxiv.org/abs/1706.06083)
with several from a random start. Attacked images are not rounded to whole grey levels.
"""

import argparse
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mergemix_mm.engine import launch
from mergemix_mm.engine.measuring import TrainedClassifier, add_arguments, load_classifiers, write_results
from mergemix_mm.functional import fgsm, pgd

# Pixels may leave 0..255 by so much through rounding.
TOLERANCE = 0.01


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, 'work_dirs/adversarial_robustness')
    parser.add_argument('--eps', type=float, default=8.0, help='largest change, in grey levels (default: %(default)g)')
    parser.add_argument(
        '--step-size', type=float, default=2.0, help='of a step of PGD, in grey levels (default: %(default)g)'
    )
    parser.add_argument('--steps', type=int, default=10, help='steps of PGD (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of the random start of PGD (default: %(default)s)')
    args = parser.parse_args(argv)
    if not 0 <= args.eps <= 255 or not args.step_size >= 0 or args.steps < 1:
        parser.error(
            f'--eps {args.eps:g} must be in [0, 255], --step-size {args.step_size:g} at least 0 and --steps '
            f'{args.steps} at least 1'
        )
    return args


def attack(
    classifier: TrainedClassifier, images: Tensor, labels: Tensor, args: argparse.Namespace, generator: torch.Generator
) -> dict[str, Tensor]:
    """The normalised images [B, 3, H, W] after each attack, by its name.

    Raises:
        LaunchError: If the images are not pixels in 0..255, normalised by the data preprocessor.
    """
    mean, std = (value.to(images.device) for value in classifier.pixel_scale())
    pixels = images * std + mean
    if not (pixels.min() >= -TOLERANCE and pixels.max() <= 255 + TOLERANCE):
        raise launch.LaunchError(
            f'CONFIG of {classifier.name}: its pixels are in [{pixels.min():.4g}, {pixels.max():.4g}] before the data '
            'preprocessor, and attacks need 0..255: normalise in data_preprocessor, not in the pipeline'
        )
    low, high = (0 - mean) / std, (255 - mean) / std

    def loss(attacked: Tensor) -> Tensor:
        return F.cross_entropy(classifier.logits(attacked), labels, reduction='sum')

    eps, step = args.eps / std, args.step_size / std
    return {
        'FGSM': fgsm(loss, images, eps, low, high),
        'PGD': pgd(loss, images, eps, step, args.steps, low, high, generator=generator),
    }


def accuracies(classifier: TrainedClassifier, merge: bool, args: argparse.Namespace) -> tuple[dict[str, float], int]:
    """Top-1 accuracy in percent without attack and under each, and the number of images."""
    # The same start for every classifier, with and without merging.
    generator = torch.Generator().manual_seed(args.seed)
    right: dict[str, int] = {}
    done = 0
    with classifier.merging(merge):
        for images, labels in classifier.batches():
            done += len(images)
            for name, attacked in dict(clean=images, **attack(classifier, images, labels, args, generator)).items():
                with torch.no_grad():
                    found = int((classifier.logits(attacked).argmax(1) == labels).sum())
                right[name] = right.get(name, 0) + found
    return {name: 100 * number / done for name, number in right.items()}, done


def main(argv: Sequence[str] | None = None) -> dict:
    """Measure, print the table, and write table and numbers.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.

    Returns:
        dict: The content of the JSON file.
    """
    args = parse_args(argv)
    results, done = [], 0
    for classifier in load_classifiers(args):
        for merge in classifier.modes:
            top1, done = accuracies(classifier, merge, args)
            results.append(dict(model=classifier.name, merged_tokens=classifier.merged_tokens(merge), top1=top1))
    content = {key: getattr(args, key) for key in ('classifiers', 'eps', 'step_size', 'steps', 'seed')}
    content.update(images=done, results=results)
    names = list(results[0]['top1'])
    header = ('model', 'merged tokens', *(f'{name} [%]' for name in names))
    rows = [[row['model'], row['merged_tokens'], *(f'{row["top1"][name]:.2f}' for name in names)] for row in results]
    write_results(args.output_dir, 'adversarial', header, rows, content)
    return content


if __name__ == '__main__':
    main()
