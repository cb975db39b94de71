"""Does the target of AIA matter? A tiny Janus learns to answer questions on drawn shapes and to draw them.

The targets are those of teachers that learnt only one of the tasks, the same targets swapped between the tasks, and
flat targets. The arms of one seed share weights, batches and dropped prompts, so that differences are paired. Every
finished run is written to --output at once. A benchmark that is started again skips these runs. The curves of the
teachers are kept beside them.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from lib.janus import TASKS, build_tuner, encode, measure_task, train, true_images
from lib.measure import write_json
from lib.runs import Runs, add_run_arguments, paired_table, run_missing
from torch import Tensor

from mergemix_mm.models.losses import AIALoss
from mergemix_mm.models.losses.aia_loss import resampled_curve
from mergemix_mm.utils.tables import markdown_table

NONE = 'no AIA'
# The kind of the targets, and a factor on the weights of the released code.
ARMS = {
    NONE: ('teachers', 0),
    'teachers, weight x 0.1': ('teachers', 0.1),
    'teachers, weight x 1': ('teachers', 1),
    'teachers, weight x 10': ('teachers', 10),
    'swapped, weight x 1': ('swapped', 1),
    'swapped, weight x 10': ('swapped', 10),
    'flat, weight x 1': ('flat', 1),
    'flat, weight x 10': ('flat', 10),
}
RELEASED = dict(gen=5.0, und=10.0)
TEACHER_SEED, TEST_SEED = 1000, 2
Curves = dict[str, dict[str, list[float]]]


def targets(kind: str, curves: Curves) -> dict[str, list[dict]]:
    """Stages of `AIALoss`, one for each layer: the curves, those of the other task, or their means over the layers."""
    found = {}
    for task, other in zip(TASKS, reversed(TASKS), strict=True):
        curve = curves[other if kind == 'swapped' else task]
        values = resampled_curve(curve['mean'], curve['std'], len(curve['mean']))
        if kind == 'flat':
            values = [[statistics.mean(part)] * len(part) for part in values]
        found[task] = [
            dict(layers=(layer, layer + 1), target=target, delta=delta)
            for layer, (target, delta) in enumerate(zip(*values, strict=True))
        ]
    return found


def run(arm: str, seed: int, steps: int, num_train: int, num_test: dict[str, int], curves: Curves) -> dict[str, float]:
    """Train one arm with one seed and test it on new images.

    Returns:
        dict: of :func:`measure_task` for both tasks; ``distance`` and ``teacher_distance``, mean of |I - T| over layers
        and samples for the arm's own targets and for the teachers', both tasks' mean, in percent of the attention;
        ``correlation`` of the two curves over the layers; ``gen_0``, ``und_0``, ..., the interaction of each layer in
        percent; ``seconds``.
    """
    torch.set_num_threads(1)
    kind, factor = ARMS[arm]
    batches = {task: encode(task, num_train)[0] for task in TASKS}
    start = time.perf_counter()
    aia = AIALoss(targets(kind, curves), {task: factor * weight for task, weight in RELEASED.items()})
    tuner = build_tuner(seed)
    train(tuner, batches, steps, seed, aia if factor else None)
    seconds = time.perf_counter() - start
    found, means, distances = {}, {}, dict(distance=[], teacher_distance=[])
    for task in TASKS:
        numbers, interaction = measure_task(tuner, task, num_test[task], TEST_SEED)
        found |= numbers
        means[task] = interaction.mean(dim=1)
        for key, curve in (
            ('distance', aia.curve(task, len(interaction))[0]),
            ('teacher_distance', curves[task]['mean']),
        ):
            distances[key].append((interaction - torch.tensor(curve)[:, None]).abs().mean().item())
    found |= {key: 100 * statistics.mean(values) for key, values in distances.items()}
    found['correlation'] = _correlation(*means.values())
    found |= {f'{task}_{layer}': 100 * value for task in TASKS for layer, value in enumerate(means[task].tolist())}
    return dict(**found, seconds=seconds)


def train_teachers(steps: int, num_train: int, num_test: dict[str, int]) -> dict[str, dict]:
    """Train a model for each task that learns nothing else, with as many batches of the task as the arms have.

    Returns:
        dict: per task ``mean`` and ``std`` of the interaction over new samples, one number per layer, and what
        :func:`measure_task` found.
    """
    torch.set_num_threads(1)
    curves = {}
    for task in TASKS:
        tuner = build_tuner(TEACHER_SEED)
        train(tuner, {task: encode(task, num_train)[0]}, steps // 2, TEACHER_SEED)
        numbers, interaction = measure_task(tuner, task, num_test[task], TEACHER_SEED)
        curves[task] = dict(mean=interaction.mean(1).tolist(), std=interaction.std(1).tolist(), **numbers)
        print(f'teacher of {task}: ' + ', '.join(f'{key} {value:.1f}' for key, value in numbers.items()), flush=True)
    return curves


def load_teachers(path: Path, settings: dict) -> Curves:
    """Read the curves of the teachers from a file, or train them and write it. `AIAHook` can read it as a preset."""
    if not path.exists():
        write_json(path, dict(settings=settings, **train_teachers(**settings)))
    stored = json.loads(path.read_text())
    if stored['settings'] != settings:
        raise SystemExit(f'--output: {path} holds curves for {stored["settings"]}, not {settings}: name another')
    return {task: {key: stored[task][key] for key in ('mean', 'std')} for task in TASKS}


def curve_table(runs: Runs, seeds: int, curves: Curves) -> str:
    """The table of the interaction of each layer in percent, as the mean over the seeds. The teachers come first."""
    layers = range(len(curves['gen']['mean']))
    lines = [['teachers', *(f'{100 * curves[task]["mean"][layer]:.1f}' for task in TASKS for layer in layers)]]
    for arm in ARMS:
        means = [
            statistics.mean(runs[f'{arm}/{seed}'][f'{task}_{layer}'] for seed in range(seeds))
            for task in TASKS
            for layer in layers
        ]
        lines.append([arm, *(f'{mean:.1f}' for mean in means)])
    return markdown_table(('interaction, %', *(f'{task}, layer {layer}' for task in TASKS for layer in layers)), lines)


def _correlation(first: Tensor, second: Tensor) -> float:
    return torch.corrcoef(torch.stack([first, second]))[0, 1].item()


def main(argv: list[str] | None = None) -> Runs:
    """Train the teachers if their file is missing, run what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_run_arguments(parser, seeds=3, steps=400, output='aia_targets.json')
    args = parser.parse_args(argv)
    if args.quick:
        args.seeds, args.workers = 2, 0
        settings = dict(steps=2, num_train=64, num_test=dict(gen=4, und=4))
    else:
        settings = dict(steps=args.steps, num_train=4000, num_test=dict(gen=200, und=600))
    name = f'{args.output.stem}_teachers{"_quick" if args.quick else ""}'
    curves = load_teachers(args.output.with_stem(name), settings)
    runs = run_missing(run, list(ARMS), args, dict(**settings, curves=curves))
    losses = dict(ntp_gen='gen: nats / 100 codes', ntp_und='und: nats / 100 tokens')
    metrics = dict(color='gen: colour %', position='gen: place %', accuracy='und: accuracy %')
    interaction = dict(distance='|I - T| %', teacher_distance='|I - teachers| %', correlation='correlation')
    for columns in (losses, metrics, interaction):
        print(paired_table(runs, list(ARMS), args.seeds, columns, NONE), end='\n\n')
    print(curve_table(runs, args.seeds, curves))
    between = _correlation(*(torch.tensor(curves[task]['mean']) for task in TASKS))
    print(f"\nCorrelation of the teachers' curves over the {len(curves['gen']['mean'])} layers: {between:.2f}")
    limit = true_images(settings['num_test']['gen'], TEST_SEED)
    print(f'True images, as mosaics: colour {limit["color"]:.0f} %, place {limit["position"]:.0f} %')
    return runs


if __name__ == '__main__':
    main()
