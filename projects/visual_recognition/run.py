"""Trains both ways to a classifier on drawn shapes, on a CPU, and prints what they reach.

The tiny SPHINX that both start from is trained first, unless its folder exists. Everything is written to work_dirs/.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STAGES = ('align-coslr-400i', 'grounding-coslr-1000i', 'tasks-coslr-600i')
PRETRAINED = f'tiny-sphinx_1xb16-{STAGES[-1]}_shapes/pretrained'
# Config of each way and the metric that it is tested with.
WAYS = {
    'tiny-sphinx-mixed_1xb64-linear-coslr-10e_shapes': 'accuracy/top1',
    'tiny-sphinx_1xb32-classify-coslr-300i_shapes': 'answer/accuracy',
}


def commands() -> list[list[str]]:
    """The command lines that are to be run, without the interpreter, from the root of the repository."""
    stages = [f'configs/sphinx/tiny-sphinx_1xb16-{stage}_shapes.py' for stage in STAGES]
    ways = [f'projects/visual_recognition/configs/{name}.py' for name in WAYS]
    configs = ways if (ROOT / 'work_dirs' / PRETRAINED).is_dir() else stages + ways
    summaries = [
        ['tools/analysis_tools/summarize_run.py', f'work_dirs/{name}', '--key', key] for name, key in WAYS.items()
    ]
    return [['tools/train.py', config] for config in configs] + summaries


def main(argv: Sequence[str] | None = None) -> None:
    """Run the commands one after the other.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.

    Raises:
        subprocess.CalledProcessError: If one of them fails.
    """
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(paths))
    for command in commands():
        print('python', *command, flush=True)
        subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=True)


if __name__ == '__main__':
    main()
