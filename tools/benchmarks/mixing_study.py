"""Studies of mixing on cluttered digits, 20 training images per class: labels, schemes, rivals, variants of MergeMix.

All arms of a study see the same images in the same order and start from the same weights. Each seed has its own
training images, weights and order, which the arms share, so that differences are paired. The number of steps is fixed.
Every finished run is written to --output at once. A study that is started again skips these runs, and those of arms
that it shares with another study. Only one call at a time can write to a file.
"""

import argparse
import base64
import statistics
import time
from typing import Any

import numpy as np
import torch
from lib.contrasts import (
    bootstrap_means,
    contrast,
    half_width,
    holm,
    paired_interval,
    percentile_interval,
    rank_intervals,
)
from lib.digit_mixes import score
from lib.digits import Digits, build_classifier, predict, seed_mixes, train
from lib.label_mixers import LabelledMixer
from lib.mixing_arms import ARMS, STUDIES, Study
from lib.runs import Runs, add_run_arguments, mean_and_deviation, run_missing
from torch import Tensor, nn

from mergemix_mm.evaluation.localization import mass_on_object, object_in_top, object_share
from mergemix_mm.evaluation.metrics.calibration_error import CalibrationBins
from mergemix_mm.functional import hide_patches
from mergemix_mm.utils.tables import markdown_table

NUM_DIGITS = 1797  # Of scikit-learn's set.
HIDDEN = (0.0, 0.2, 0.4, 0.6, 0.8)  # Shares of patches.
COLUMNS = dict(
    accuracy='top-1 %',
    calibration_error='ECE %',
    occlusion_area='occlusion %',
    mass_on_digit='mass on digit %',
    digit_in_top20='digit in top 20%',
    label_error='label error %',
)
DEVIATION = 3.4  # Of paired differences of top-1 in percent, over the seeds of docs/benchmarks/mergemix.md.


def run(arm: str, seed: int, steps: int, num_test: int | None) -> dict[str, Any]:
    """Train one arm with one seed and test it on all digits that it has not seen.

    Returns:
        dict: In percent, top-1 ``accuracy``, ``calibration_error``, ``occlusion_area``, ``mass_on_digit``,
            ``digit_in_top20`` and, in arms of the study of labels, ``label_error``. The digits that were ``tested``,
            and those of them that were ``correct``, see :func:`pack_bits`. The ``seconds`` that it took.
    """
    torch.set_num_threads(1)
    start = time.perf_counter()
    recipe = ARMS[arm]
    data = dict(clutter=True, train_per_class=20, seed=seed)
    training, test = Digits.load('train', **data), Digits.load('test', **data)
    model = build_classifier(recipe.augment, recipe.prob, seed, dict(recipe.options))
    seed_mixes(seed + recipe.stream)
    labelled = _labelled_mixer(model)
    train(model, training, recipe.lengths * steps, seed, show_ink=None if labelled is None else labelled.show_ink)
    result = measure(model, test, num_test)
    if labelled is not None and labelled.errors:
        result['label_error'] = 100 * statistics.mean(labelled.errors)
    return result | dict(seconds=time.perf_counter() - start)


def _labelled_mixer(model: nn.Module) -> LabelledMixer | None:
    augments = [] if model.augments is None else model.augments.augments
    return next((augment for augment in augments if isinstance(augment, LabelledMixer)), None)


@torch.no_grad()
def measure(model: nn.Module, test: Digits, num_test: int | None = None) -> dict[str, Any]:
    """What :func:`run` says about a trained model."""
    images, labels, masks = test.images[:num_test], test.labels[:num_test], test.masks[:num_test]
    confidence, predicted = predict(model, images).max(dim=1)
    correct = predicted == labels
    scores = score(model.backbone, images, num_merge=0, layer=None)
    ink = object_share(masks, scores.grid)
    return dict(
        accuracy=100 * float(correct.float().mean()),
        calibration_error=100 * CalibrationBins.from_predictions(confidence, correct).expected_error(),
        occlusion_area=100 * occlusion_area(model, images, labels, scores.grid),
        mass_on_digit=100 * float(mass_on_object(scores.saliency, ink).mean()),
        digit_in_top20=100 * float(object_in_top(scores.saliency, ink).mean()),
        tested=pack_bits(test.source[:num_test], NUM_DIGITS),
        correct=pack_bits(test.source[:num_test][correct], NUM_DIGITS),
    )


def occlusion_area(model: nn.Module, images: Tensor, labels: Tensor, grid: tuple[int, int]) -> float:
    """The mean accuracy in [0, 1] over the shares of patches that are hidden, by the trapezoidal rule.

    Random patches of each image show the mean colour, the same ones for every model.
    """
    num_patches = grid[0] * grid[1]
    order = torch.rand(len(images), num_patches, generator=torch.Generator().manual_seed(0))
    accuracy = []
    for share in HIDDEN:
        hidden = hide_patches(images, order, round(share * num_patches), grid)
        accuracy.append(float((predict(model, hidden).argmax(dim=1) == labels).float().mean()))
    # The shares have equal distances.
    return statistics.mean([(accuracy[0] + accuracy[-1]) / 2, *accuracy[1:-1]])


def pack_bits(places: Tensor, length: int) -> str:
    """A set of places in [0, length) as base64 of its bits."""
    bits = np.zeros(length, dtype=bool)
    bits[places.numpy()] = True
    return base64.b64encode(np.packbits(bits).tobytes()).decode()


def unpack_bits(text: str, length: int) -> np.ndarray:
    """The inverse of :func:`pack_bits`: [length] bool."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8), count=length).astype(bool)


def report(study: Study, runs: Runs, seeds: int) -> str:
    """The tables of a study: every arm, and the contrasts that were named beforehand."""
    arms = list(study.arms)
    values = {
        key: {arm: np.array([runs[f'{arm}/{seed}'][key] for seed in range(seeds)]) for arm in arms}
        for key in COLUMNS
        if all(key in runs[f'{arm}/0'] for arm in arms)
    }
    bits = {
        key: np.array([[unpack_bits(runs[f'{arm}/{seed}'][key], NUM_DIGITS) for seed in range(seeds)] for arm in arms])
        for key in ('correct', 'tested')
    }
    drawn = 100 * bootstrap_means(bits['correct'], bits['tested'][0])
    rows = []
    for arm, (low, high) in zip(arms, rank_intervals(drawn), strict=True):
        cells = [mean_and_deviation(column[arm].tolist()) for column in values.values()]
        difference = values['accuracy'][arm] - values['accuracy'][study.reference]
        paired = None if arm == study.reference else mean_and_deviation(difference.tolist(), '+')
        rows.append([arm, cells[0], paired, f'{low} - {high}', *cells[1:]])
    titles = [COLUMNS[key] for key in values]
    header = ('arm', titles[0], f'to {study.reference}', 'ranks (95%)', *titles[1:])
    text = markdown_table(header, rows)
    text += (
        f'\n\n{seeds} seeds: the expected half-width of a paired interval of top-1 is '
        f'{half_width(DEVIATION, seeds):.1f} points (paired deviation {DEVIATION} points).'
    )
    if study.contrasts:
        text += f'\n\n{_contrast_table(study, values["accuracy"], dict(zip(arms, drawn.T, strict=True)))}'
    return text


def _contrast_table(study: Study, accuracy: dict[str, np.ndarray], drawn: dict[str, np.ndarray]) -> str:
    intervals = {name: paired_interval(contrast(accuracy, weights)) for name, weights in study.contrasts.items()}
    adjusted = holm([interval.p for interval in intervals.values()])
    rows = []
    for (name, interval), p in zip(intervals.items(), adjusted, strict=True):
        both = percentile_interval(contrast(drawn, study.contrasts[name]), interval.mean)
        p_values = ['< 0.001' if value < 0.001 else f'{value:.3f}' for value in (interval.p, p)]
        rows.append([name, f'{interval.mean:+.2f}', interval.ends, both.ends, *p_values])
    header = ('contrast of top-1', 'points', 'seeds (95%)', 'seeds and images (95%)', 'p', 'p (Holm)')
    return markdown_table(header, rows)


def main(argv: list[str] | None = None) -> Runs:
    """Run what is missing of a study and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('study', choices=STUDIES, help='the study to run')
    add_run_arguments(parser, seeds=None, steps=1600, output='mixing_study.json')
    args = parser.parse_args(argv)
    study = STUDIES[args.study]
    args.seeds = args.seeds or study.seeds
    if args.quick:
        args.seeds, args.steps, args.workers = 2, 2, 0
    settings = dict(steps=args.steps, num_test=32 if args.quick else None)
    runs = run_missing(run, list(study.arms), args, settings)
    print(report(study, runs, args.seeds))
    return runs


if __name__ == '__main__':
    main()
