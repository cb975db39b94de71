"""Many short trainings: arms by seeds, in several processes, every finished run written down at once."""

import argparse
import json
import multiprocessing
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from mergemix_mm.utils.processes import end_with_parent

from .measure import markdown_table, write_json

Runs = dict[str, dict[str, float]]


def add_run_arguments(parser: argparse.ArgumentParser, seeds: int, steps: int, output: str) -> None:
    """Add the options that benchmarks of trainings share: --seeds, --steps, --workers, --output, --quick."""
    parser.add_argument('--seeds', type=int, default=seeds, help='paired runs per arm (default: %(default)s)')
    parser.add_argument('--steps', type=int, default=steps, help='gradient steps per run (default: %(default)s)')
    parser.add_argument('--workers', type=int, default=2, help='processes, of one thread each (default: %(default)s)')
    parser.add_argument('--output', type=Path, default=Path('work_dirs/benchmarks', output))
    parser.add_argument(
        '--quick', action='store_true', help='two steps, two seeds: shows that it runs, measures nothing'
    )


def run_missing(
    run: Callable[..., dict[str, float]], arms: Sequence[str], args: argparse.Namespace, settings: dict
) -> Runs:
    """Run every arm with every seed, but for what the output file holds already.

    Args:
        run (Callable): ``run(arm, seed, **settings)`` -> what was measured; a function of a module.
        arms (Sequence[str]): Names of the arms.
        args (argparse.Namespace): Of :func:`add_run_arguments`.
        settings (dict): What the runs depend on besides arm and seed.

    Returns:
        dict: ``'arm/seed'`` -> what was measured.

    Raises:
        SystemExit: if the output file holds runs with other settings.
    """
    stored = json.loads(args.output.read_text()) if args.output.exists() else dict(settings=settings, runs={})
    if stored['settings'] != settings:
        raise SystemExit(f'--output {args.output} holds runs with {stored["settings"]}, not {settings}: name another')
    runs = stored['runs']
    # Seed by seed, so that an interrupted benchmark has whole pairs.
    missing = [(arm, seed) for seed in range(args.seeds) for arm in arms if f'{arm}/{seed}' not in runs]

    def finish(arm: str, seed: int, result: dict[str, float]) -> None:
        runs[f'{arm}/{seed}'] = result
        write_json(args.output, dict(settings=settings, runs=runs))
        first = next(iter(result))
        done = sum(f'{arm}/{seed}' in runs for arm in arms for seed in range(args.seeds))
        print(f'[{done}/{args.seeds * len(arms)}] {arm}, seed {seed}: {first} {result[first]:.2f}', flush=True)

    if args.workers == 0:
        for arm, seed in missing:
            finish(arm, seed, run(arm, seed, **settings))
        return runs
    with ProcessPoolExecutor(args.workers, multiprocessing.get_context('spawn'), end_with_parent) as pool:
        futures = {pool.submit(run, arm, seed, **settings): (arm, seed) for arm, seed in missing}
        for future in as_completed(futures):
            finish(*futures[future], future.result())
    return runs


def paired_table(runs: Runs, arms: Sequence[str], seeds: int, columns: dict[str, str], reference: str) -> str:
    """Mean, standard deviation and paired difference to the reference arm of every arm.

    Args:
        runs (dict): Of :func:`run_missing`.
        arms (Sequence[str]): The rows.
        seeds (int): Runs per arm.
        columns (dict[str, str]): What was measured -> its heading.
        reference (str): An arm.
    """
    rows = []
    for arm in arms:
        row = [arm]
        for key in columns:
            values = [runs[f'{arm}/{seed}'][key] for seed in range(seeds)]
            paired = [value - runs[f'{reference}/{seed}'][key] for seed, value in enumerate(values)]
            row += [mean_and_deviation(values), None if arm == reference else mean_and_deviation(paired, '+')]
        rows.append(row)
    names = [name for title in columns.values() for name in (title, f'to {reference}')]
    return markdown_table(('arm', *names), rows)


def mean_and_deviation(values: Sequence[float], sign: str = '') -> str:
    """'12.30 ± 0.40'."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f'{statistics.mean(values):{sign}.2f} ± {deviation:.2f}'
