"""Accuracy and calibration on cluttered digits with 20 training images per class, for every way to mix.

All arms see the same images in the same order and take the same number of gradient steps; each seed has its own
training images, weights and order, shared by the arms, so that differences are paired. Half of the batches are mixed.
Every finished run is written to --output at once, and a run that is started again skips what is there.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from _measure import markdown_table, write_json
from digits_training import Digits, build_classifier, predict, train

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
    """Train one arm with one seed and test it on all the digits it has not seen.

    Returns:
        dict: top-1 accuracy and expected calibration error in percent, and the seconds it took.
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


def table(runs: dict[str, dict[str, float]], seeds: range) -> str:
    """Mean, standard deviation and paired difference to CutMix of every arm."""
    rows = []
    for arm in ARMS:
        row = [arm]
        for key in ('accuracy', 'calibration_error'):
            values = [runs[f'{arm}/{seed}'][key] for seed in seeds]
            paired = [value - runs[f'{REFERENCE}/{seed}'][key] for value, seed in zip(values, seeds, strict=True)]
            row += [_mean_and_deviation(values), None if arm == REFERENCE else _mean_and_deviation(paired, '+')]
        rows.append(row)
    names = ('top-1 %', f'to {REFERENCE}', 'ECE %', f'to {REFERENCE}')
    return markdown_table(('augment', *names), rows)


def _mean_and_deviation(values: list[float], sign: str = '') -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f'{statistics.mean(values):{sign}.2f} ± {deviation:.2f}'


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seeds', type=int, default=5, help='paired runs per arm (default: %(default)s)')
    parser.add_argument(
        '--steps', type=int, default=1600, help='gradient steps per run, batch 32 (default: %(default)s)'
    )
    parser.add_argument('--prob', type=float, default=0.5, help='share of mixed batches (default: %(default)s)')
    parser.add_argument('--workers', type=int, default=2, help='processes, of one thread each (default: %(default)s)')
    parser.add_argument('--output', type=Path, default=Path('work_dirs/benchmarks/digits_accuracy.json'))
    parser.add_argument(
        '--quick', action='store_true', help='two steps, two seeds: shows that it runs, measures nothing'
    )
    args = parser.parse_args(argv)
    if args.quick:
        args.seeds, args.steps, args.workers = 2, 2, 0
    settings = dict(steps=args.steps, prob=args.prob, num_test=32 if args.quick else None)

    seeds = range(args.seeds)
    stored = json.loads(args.output.read_text()) if args.output.exists() else dict(settings=settings, runs={})
    if stored['settings'] != settings:
        parser.error(f'--output {args.output} holds runs with {stored["settings"]}, not {settings}: name another file')
    runs = stored['runs']
    # Seed by seed, so that an interrupted benchmark has whole pairs.
    missing = [(arm, seed) for seed in seeds for arm in ARMS if f'{arm}/{seed}' not in runs]

    def finish(arm: str, seed: int, result: dict[str, float]) -> None:
        runs[f'{arm}/{seed}'] = result
        write_json(args.output, dict(settings=settings, runs=runs))
        print(f'[{len(runs)}/{len(seeds) * len(ARMS)}] {arm}, seed {seed}: {result["accuracy"]:.2f}%', flush=True)

    if args.workers == 0:
        for arm, seed in missing:
            finish(arm, seed, run(arm, seed, **settings))
    else:
        with ProcessPoolExecutor(args.workers, multiprocessing.get_context('spawn')) as pool:
            futures = {pool.submit(run, arm, seed, **settings): (arm, seed) for arm, seed in missing}
            for future in as_completed(futures):
                finish(*futures[future], future.result())
    print(table(runs, seeds))
    return runs


if __name__ == '__main__':
    main()
