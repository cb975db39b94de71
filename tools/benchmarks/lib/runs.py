"""Many short runs: arms and seeds, in several processes, with every finished run stored at once."""

import argparse
import json
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from mergemix_mm.utils.processes import end_with_parent
from mergemix_mm.utils.tables import markdown_table

from .measure import write_json

Runs = dict[str, dict[str, Any]]


def add_run_arguments(parser: argparse.ArgumentParser, seeds: int | None, steps: int, output: str) -> None:
    """Add the options of benchmarks that train: --seeds, --steps, --workers, --minutes, --output, --quick."""
    number = 'that of the study' if seeds is None else seeds
    parser.add_argument('--seeds', type=int, default=seeds, help=f'paired runs of each arm (default: {number})')
    parser.add_argument('--steps', type=int, default=steps, help='gradient steps of a run (default: %(default)s)')
    parser.add_argument('--workers', type=int, default=2, help='processes with one thread each (default: %(default)s)')
    parser.add_argument(
        '--minutes', type=float, help='start no run after so many minutes; a later call goes on (default: no limit)'
    )
    parser.add_argument('--output', type=Path, default=Path('work_dirs/benchmarks', output))
    parser.add_argument(
        '--quick', action='store_true', help='two steps and two seeds, which show that it runs and measure nothing'
    )


def run_missing(
    run: Callable[..., dict[str, Any]], arms: Sequence[str], args: argparse.Namespace, settings: dict
) -> Runs:
    """Run every arm with every seed, except for runs that the output file holds.

    Args:
        run (Callable): ``run(arm, seed, **settings)`` returns the measured numbers. It must be a function of a module,
            so that other processes can import it.
        arms (Sequence[str]): Names of the arms.
        args (argparse.Namespace): The options of :func:`add_run_arguments`.
        settings (dict): Everything that the runs depend on besides arm and seed.

    Returns:
        dict: The measured numbers of each ``'arm/seed'``.

    Raises:
        SystemExit: If the output file holds runs with other settings, or if runs are missing after --minutes.
    """
    stored = json.loads(args.output.read_text()) if args.output.exists() else dict(settings=settings, runs={})
    if stored['settings'] != settings:
        raise SystemExit(f'--output {args.output} holds runs with {stored["settings"]}, not {settings}: name another')
    runs = stored['runs']
    # The order is seed by seed, so that an interrupted benchmark has complete pairs.
    missing = [(arm, seed) for seed in range(args.seeds) for arm in arms if f'{arm}/{seed}' not in runs]
    end = math.inf if args.minutes is None else time.monotonic() + 60 * args.minutes

    def finish(arm: str, seed: int, result: dict[str, Any]) -> None:
        runs[f'{arm}/{seed}'] = result
        write_json(args.output, dict(settings=settings, runs=runs))
        first = next(iter(result))
        done = sum(f'{arm}/{seed}' in runs for arm in arms for seed in range(args.seeds))
        print(f'[{done}/{args.seeds * len(arms)}] {arm}, seed {seed}: {first} {result[first]:.2f}', flush=True)

    if args.workers == 0:
        while missing and time.monotonic() < end:
            arm, seed = missing.pop(0)
            finish(arm, seed, run(arm, seed, **settings))
    elif missing:
        with ProcessPoolExecutor(args.workers, multiprocessing.get_context('spawn'), end_with_parent) as pool:
            running: dict[Future, tuple[str, int]] = {}
            while running or (missing and time.monotonic() < end):
                # Only what can start at once is handed over, so that --minutes can end the rest.
                while missing and len(running) < args.workers and time.monotonic() < end:
                    arm, seed = missing.pop(0)
                    running[pool.submit(run, arm, seed, **settings)] = arm, seed
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    finish(*running.pop(future), future.result())
    if missing:
        raise SystemExit(f'{len(missing)} runs are missing after --minutes {args.minutes:g}: start again to go on')
    return runs


def paired_table(runs: Runs, arms: Sequence[str], seeds: int, columns: dict[str, str], reference: str) -> str:
    """The table of mean, standard deviation and paired difference to the reference arm, for each arm.

    Args:
        runs (dict): The result of :func:`run_missing`.
        arms (Sequence[str]): The rows.
        seeds (int): Number of runs of each arm.
        columns (dict[str, str]): The names of the measured numbers and their headings.
        reference (str): The name of an arm.
    """
    rows = []
    for arm in arms:
        row: list[str | None] = [arm]
        for key in columns:
            values = [runs[f'{arm}/{seed}'][key] for seed in range(seeds)]
            paired = [value - runs[f'{reference}/{seed}'][key] for seed, value in enumerate(values)]
            row += [mean_and_deviation(values), None if arm == reference else mean_and_deviation(paired, '+')]
        rows.append(row)
    names = [name for title in columns.values() for name in (title, f'to {reference}')]
    return markdown_table(('arm', *names), rows)


def mean_and_deviation(values: Sequence[float], sign: str = '') -> str:
    """Mean and standard deviation, for example '12.30 ± 0.40'."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f'{statistics.mean(values):{sign}.2f} ± {deviation:.2f}'
