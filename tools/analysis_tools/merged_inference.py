"""Measures what merging tokens at inference changes: accuracy, calibration and operations, with the same weights.

One command gives both columns of a table of calibration, with and without merging. The expected calibration error
(ECE) is that of https://arxiv.org/abs/1706.04599. GFLOPs are those of one image: what MMEngine counts, and with the
products of attention, which it leaves out. tools/benchmarks/tome_throughput.py measures the speed.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import torch

from mergemix_mm.engine.measuring import (
    TrainedClassifier,
    add_arguments,
    count_flops,
    load_classifiers,
    write_results,
)
from mergemix_mm.evaluation.metrics.calibration_error import CalibrationBins
from mergemix_mm.visualization import draw_reliability_diagram

HEADER = ('model', 'merged tokens', 'top-1 [%]', 'ECE [%]', 'overconfidence [%]', 'GFLOPs', 'with attention')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, 'work_dirs/merged_inference')
    parser.add_argument('--bins', type=int, default=15, help='of the calibration error (default: %(default)s)')
    args = parser.parse_args(argv)
    if args.bins < 1:
        parser.error(f'--bins {args.bins} must be at least 1')
    return args


@torch.no_grad()
def measure(classifier: TrainedClassifier, merge: bool, num_bins: int) -> tuple[dict, CalibrationBins]:
    """A row of the table, and the bins of its reliability diagram."""
    confidence, right = [], []
    with classifier.merging(merge):
        for images, labels in classifier.batches():
            best, predicted = classifier.logits(images).float().softmax(1).max(1)
            confidence.append(best.cpu())
            right.append((predicted == labels).cpu())
        flops = count_flops(classifier.model, images[:1])
    bins = CalibrationBins.from_predictions(torch.cat(confidence), torch.cat(right), num_bins)
    row = dict(
        model=classifier.name,
        merged_tokens=classifier.merged_tokens(merge),
        images=int(bins.count.sum()),
        top1=100 * torch.cat(right).double().mean().item(),
        ece=100 * bins.expected_error(),
        overconfidence=100 * bins.overconfidence(),
        gflops=flops.counted / 1e9,
        gflops_with_attention=(flops.counted + flops.attention) / 1e9,
    )
    return row, bins


def main(argv: Sequence[str] | None = None) -> dict:
    """Measure, print the table, and write table, numbers and reliability diagrams.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.

    Returns:
        dict: The content of the JSON file.
    """
    args = parse_args(argv)
    results, diagrams = [], []
    for classifier in load_classifiers(args):
        for merge in classifier.modes:
            row, bins = measure(classifier, merge, args.bins)
            results.append(row)
            numbers = (value.numpy() for value in (bins.count, bins.confidence, bins.accuracy))
            diagrams.append(draw_reliability_diagram(*numbers, title=classifier.curve_name(merge)))
    rows = [
        [row['model'], row['merged_tokens'], *(f'{row[key]:.2f}' for key in ('top1', 'ece', 'overconfidence'))]
        + [f'{row[key]:.4g}' for key in ('gflops', 'gflops_with_attention')]
        for row in results
    ]
    content = dict(classifiers=args.classifiers, bins=args.bins, results=results)
    write_results(args.output_dir, 'merged_inference', HEADER, rows, content, np.concatenate(diagrams, axis=1))
    return content


if __name__ == '__main__':
    main()
