"""Accuracy and calibration on cluttered digits with 20 training images for each class, for every way to mix.

All arms see the same images in the same order and take the same number of gradient steps. Each seed has its own
training images, weights and order, which the arms share, so that differences are paired. Half of the batches are mixed.
Every finished run is written to --output at once. A benchmark that is started again skips these runs.
"""

import argparse
import time

import torch
from lib.digits import Digits, build_classifier, predict, train
from lib.runs import Runs, add_run_arguments, paired_table, run_missing

from mergemix_mm.evaluation.metrics.calibration_error import CalibrationBins

ARMS = {
    'none': None,
    'Mixup': dict(type='Mixup', alpha=0.8),
    'CutMix': dict(type='CutMix', alpha=1.0),
    'ResizeMix': dict(type='ResizeMix', alpha=1.0),
    'MergeMix, area': dict(type='MergeMix', ratio='area'),
    'MergeMix, attention': dict(type='MergeMix', ratio='attention'),
    'MergeMix, gaussian': dict(type='MergeMix', ratio='gaussian'),
    'MergeMix, topk mask, area': dict(type='MergeMix', mask='topk', ratio='area'),
    'MergeMix, random mask, area': dict(type='MergeMix', mask='random', ratio='area'),
}
REFERENCE = 'CutMix'


def run(arm: str, seed: int, steps: int, prob: float, num_test: int | None) -> dict[str, float]:
    """Train one arm with one seed and test it on all digits that it has not seen.

    Returns:
        dict: Top-1 accuracy and expected calibration error in percent, and the seconds of training and test.
    """
    torch.set_num_threads(1)
    start = time.perf_counter()
    data = dict(clutter=True, train_per_class=20, seed=seed)
    model = build_classifier(ARMS[arm], prob, seed)
    train(model, Digits.load('train', **data), steps, seed)
    test = Digits.load('test', **data)
    confidence, predicted = predict(model, test.images[:num_test]).max(dim=1)
    correct = predicted == test.labels[:num_test]
    return dict(
        accuracy=100 * float(correct.float().mean()),
        calibration_error=100 * CalibrationBins.from_predictions(confidence, correct).expected_error(),
        seconds=time.perf_counter() - start,
    )


def main(argv: list[str] | None = None) -> Runs:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_run_arguments(parser, seeds=5, steps=1600, output='digits_accuracy.json')
    parser.add_argument('--prob', type=float, default=0.5, help='share of mixed batches (default: %(default)s)')
    args = parser.parse_args(argv)
    if args.quick:
        args.seeds, args.steps, args.workers = 2, 2, 0
    settings = dict(steps=args.steps, prob=args.prob, num_test=32 if args.quick else None)
    runs = run_missing(run, list(ARMS), args, settings)
    columns = dict(accuracy='top-1 %', calibration_error='ECE %')
    print(paired_table(runs, list(ARMS), args.seeds, columns, REFERENCE))
    return runs


if __name__ == '__main__':
    main()
