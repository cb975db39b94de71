"""Does mixing help? A tiny SPHINX on drawn shapes: embeddings of two encoders that need each other, views of small
things, tasks with and without instructions, weights of two specialists, and a language model frozen or not.

The encoders, and for the last study a language model per seed, are trained once, kept beside --output, and shared by
all arms. The arms of one seed share weights and order, and take equal steps, so that differences are paired. Every
finished run is written to --output at once, and a run that is started again skips what is there.
"""

import argparse
import time
from pathlib import Path

import torch
from lib.measure import markdown_table
from lib.runs import Runs, add_run_arguments, mean_and_deviation, paired_table, run_missing
from lib.sphinx import language_model_path, pretrain_language_model
from lib.sphinx_encoders import pretrain_encoders
from lib.sphinx_studies import STUDIES, Found, Sizes


def run(arm: str, seed: int, folder: str, **sizes: int) -> Found:
    """Train and test one arm, named ``study: arm``, with one seed.

    Returns:
        dict: what the study finds, and ``seconds``.
    """
    torch.set_num_threads(1)
    name, _, arm = arm.partition(': ')
    study, start = STUDIES[name], time.perf_counter()
    sizes = Sizes(**sizes)
    sizes = sizes._replace(steps=max(int(study.steps * sizes.steps), 1))
    found = study.run(study.arms[arm], seed, sizes, Path(folder))
    return dict(**found, seconds=time.perf_counter() - start)


def pretrain(folder: Path, args: argparse.Namespace) -> None:
    """Train what the arms share and is not there yet."""
    torch.set_num_threads(1)
    if not folder.exists():
        pretrain_encoders(folder, **dict(steps=2, num_images=8) if args.quick else dict(steps=800))
    for seed in range(args.seeds) if 'unfreezing' in args.study else ():
        if not language_model_path(folder, seed).exists():
            pretrain_language_model(folder, args.steps, seed)


def table(name: str, runs: Runs, seeds: int) -> str:
    """The results of a study."""
    study = STUDIES[name]
    if not study.columns:
        return weight_table(runs, name, seeds)
    own = {key.removeprefix(f'{name}: '): found for key, found in runs.items() if key.startswith(f'{name}: ')}
    return paired_table(own, list(study.arms), seeds, study.columns, study.reference)


def weight_table(runs: Runs, name: str, seeds: int) -> str:
    """One row per model of the study of weights: each branch, each mix."""
    own = [runs[f'{name}: {arm}/{seed}'] for arm in STUDIES[name].arms for seed in range(seeds)]
    models = list(dict.fromkeys(key.rpartition('/')[0] for key in own[0] if '/' in key))
    lines = []
    for model in models:
        color, shape = ([found[f'{model}/{kind}'] for found in own] for kind in ('color', 'shape'))
        mean = [(a + b) / 2 for a, b in zip(color, shape, strict=True)]
        lines.append([model, *(mean_and_deviation(values) for values in (color, shape, mean))])
    return markdown_table(('weights', '"what colour" %', '"what shape" %', 'mean %'), lines)


def main(argv: list[str] | None = None) -> Runs:
    """Pre-train what is not there, run what is missing, print a table per study."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_run_arguments(parser, seeds=3, steps=600, output='shapes_sphinx.json')
    parser.add_argument('--study', nargs='+', choices=STUDIES, default=list(STUDIES), help='which (default: all)')
    args = parser.parse_args(argv)
    sizes = Sizes(args.steps, num_train=5000, num_test=400)
    if args.quick:
        args.seeds, args.workers, args.steps = 2, 0, 2
        sizes = Sizes(args.steps, num_train=16, num_test=4)
    folder = args.output.with_name(f'{args.output.stem}_parts{"_quick" if args.quick else ""}')
    pretrain(folder, args)
    arms = [f'{name}: {arm}' for name in args.study for arm in STUDIES[name].arms]
    runs = run_missing(run, arms, args, dict(folder=str(folder), **sizes._asdict()))
    for name in args.study:
        print(f'\n{name}\n\n{table(name, runs, args.seeds)}')
    return runs


if __name__ == '__main__':
    main()
