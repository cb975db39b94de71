"""Runs everything that needs a GPU in one command of some minutes, with random weights, drawn data and no network.

The parts are separate programs, the most important first. Each has a time limit. Its results are written to the output
file as soon as it ends, including what it measured before it was stopped.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil
from lib import test_report
from lib.measure import write_json

from mergemix_mm.utils.tables import markdown_table

ROOT = Path(__file__).parents[2]
# In less time a part cannot even import its modules.
LEAST_SECONDS = 15
# Number of processes that run the tests.
WORKERS = 8
# An environment variable that marks all processes of a part.
MARK = 'MERGEMIX_SUITE_PART'
DONE = 'done'


@dataclass(frozen=True)
class Part:
    """A program of the suite.

    Args:
        title (str): What the program measures.
        seconds (int): The time limit on a GPU.
        program (str): The path in the repository, or ``'pytest'``.
        options (str): The options on a GPU. ``--quick`` has its own sizes.
    """

    title: str
    seconds: int
    program: str
    options: str = ''


PARTS = dict(
    tests=Part('tests of CUDA devices', 120, 'pytest'),
    attention=Part("AIA's attention", 90, 'tools/benchmarks/attention_backends.py', '--dtype bfloat16'),
    mixing=Part(
        'a training step with MergeMix',
        80,
        'tools/benchmarks/step_cost.py',
        '--dtype bfloat16 --batch-size 256 --layers 9 12 --rounds 9 --parts steps schemes memory',
    ),
    steps=Part('steps of 7B and 1B models', 120, 'tools/benchmarks/large_steps.py', '--dtype bfloat16'),
    merging=Part(
        'throughput of ToMe',
        40,
        'tools/benchmarks/tome_throughput.py',
        '--dtype bfloat16 --batch-size 256',
    ),
    head=Part(
        'the answer head at a vocabulary of 152,000',
        40,
        'tools/benchmarks/answer_head.py',
        '--dtype bfloat16 --vocabulary 152000 --hidden 3584',
    ),
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Parts: ' + '; '.join(f'{name} - {part.title}' for name, part in PARTS.items()),
    )
    parser.add_argument('--minutes', type=float, default=8, help='time for all parts together (default: %(default)s)')
    parser.add_argument('--output', type=Path, required=True, help='JSON file of the results, written after each part')
    parser.add_argument('--resume', action='store_true', help='keep the parts that are done in --output')
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS), help='(default: all)')
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda', help='(default: %(default)s)')
    parser.add_argument('--tiny', action='store_true', help='tiny sizes: shows that it runs, measures nothing')
    args = parser.parse_args(argv)
    if not args.minutes > 0:
        parser.error(f'--minutes {args.minutes:g} must be more than 0')
    if args.device == 'cpu' and not args.tiny:
        parser.error('--device cpu needs --tiny: the sizes are those of a GPU')
    if args.resume and not args.output.exists():
        parser.error(f'--resume: there is no file {args.output}')
    return args


def command_of(name: str, args: argparse.Namespace, results: Path) -> list[str]:
    """The command line of a part, which writes its results to the given file."""
    part = PARTS[name]
    if part.program == 'pytest':
        # One file is enough on a CPU, where `make test` runs all of them.
        tests = 'tests/test_cuda/test_functional.py' if args.tiny else 'tests/test_cuda'
        workers = ['-n', str(WORKERS)] if find_spec('xdist') and args.device == 'cuda' else []
        options = ['-q', '--tb=short', '--show-capture=no', '-p', 'lib.test_report', '-m', 'cuda', *workers]
        return [sys.executable, '-m', 'pytest', *options, tests]
    options = ['--quick'] if args.tiny else shlex.split(part.options)
    return [sys.executable, part.program, '--device', args.device, *options, '--output', str(results)]


def run(command: list[str], seconds: float, log: Path, **environment: str) -> int | None:
    """Run a command in the repository.

    Args:
        command (list[str]): The command line.
        seconds (float): After this time, the command is killed with all processes that it has started.
        log (Path): The file for its output.
        **environment (str): Additional environment variables.

    Returns:
        int | None: The exit status; None if it was killed.
    """
    paths = [str(ROOT), str(Path(__file__).parent), *filter(None, [os.environ.get('PYTHONPATH')])]
    mark = uuid.uuid4().hex
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(paths), **environment) | {MARK: mark}
    with log.open('wb') as stream:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            process.kill()
            process.wait()
            _end_all(mark)


def _end_all(mark: str) -> None:
    """Kill all processes that a part has started, also those in other groups and sessions, before the next part."""
    while True:
        left = []
        for one in psutil.process_iter():
            with suppress(psutil.Error):
                if one.environ().get(MARK) == mark:
                    one.kill()
                    left.append(one)
        if not left:
            return
        psutil.wait_procs(left, timeout=1)


def test_results(lines: Iterable[str]) -> dict:
    """Counts, failures with their messages, and the slowest tests, from the lines of `lib/test_report.py`."""
    ended = [json.loads(line) for line in lines]
    counts = Counter(test['outcome'] for test in ended)
    slowest = sorted(ended, key=lambda test: -test['seconds'])[:10]
    return dict(
        passed=counts['passed'],
        failed=counts['failed'],
        skipped=counts['skipped'],
        failures={test['name']: test['message'] for test in ended if test['outcome'] == 'failed'},
        slowest={test['name']: test['seconds'] for test in slowest},
    )


def run_part(name: str, args: argparse.Namespace, seconds: float) -> dict:
    """Run a part.

    Args:
        name (str): One of PARTS.
        args (argparse.Namespace): The options of the suite.
        seconds (float): The time limit.

    Returns:
        dict: How the part ended, its seconds, command, output, and results.
    """
    with tempfile.TemporaryDirectory() as folder:
        results, log = Path(folder) / 'results', Path(folder) / 'log'
        command, start = command_of(name, args, results), time.monotonic()
        status = run(command, seconds, log, MERGEMIX_CUDA_TESTS_ON=args.device, **{test_report.FILE: str(results)})
        part = dict(
            status=DONE if status == 0 else f'stopped after {seconds:.0f} s' if status is None else f'exit {status}',
            seconds=round(time.monotonic() - start, 1),
            command=shlex.join(['python', *command[1:]]).replace(str(results), 'FILE'),
            output=log.read_text(errors='replace')[-10000:],
        )
        if results.exists():
            text = results.read_text()
            part['results'] = test_results(text.splitlines()) if name == 'tests' else json.loads(text)
    return part


def main(argv: Sequence[str] | None = None) -> dict:
    """Run the parts that are asked for and not done yet, the most important first.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.

    Returns:
        dict: The dictionary of :func:`run_part` for each part.
    """
    args = parse_args(argv)
    if args.device == 'cuda':
        check_cuda()
    deadline = time.monotonic() + 60 * args.minutes
    parts = json.loads(args.output.read_text())['parts'] if args.resume else {}
    for name in PARTS:
        left = deadline - time.monotonic()
        if name not in args.parts or parts.get(name, {}).get('status') == DONE:
            continue
        if left < LEAST_SECONDS:
            parts.setdefault(name, dict(status='not run: no time left'))
            continue
        print(f'==> {name}: {PARTS[name].title}', flush=True)
        # With tiny sizes there is no limit for a part, because the machine of the tests may be busy.
        parts[name] = run_part(name, args, left if args.tiny else min(PARTS[name].seconds, left))
        write_json(args.output, dict(benchmark='gpu_suite', options=vars(args), parts=parts))
        print('\n'.join(parts[name]['output'].splitlines()[-40:]), flush=True)
    write_json(args.output, dict(benchmark='gpu_suite', options=vars(args), parts=parts))
    rows = [(name, PARTS[name].title, part['status'], part.get('seconds')) for name, part in parts.items()]
    print(markdown_table(('part', 'what', 'end', 'seconds'), rows))
    return parts


def check_cuda() -> None:
    """Check that torch sees a GPU.

    Raises:
        SystemExit: If it does not.
    """
    import torch

    if not torch.cuda.is_available():
        raise SystemExit('--device cuda: torch sees no CUDA device here. --device cpu --tiny shows that the suite runs')


if __name__ == '__main__':
    sys.exit(any(part['status'] != DONE for part in main().values()))
