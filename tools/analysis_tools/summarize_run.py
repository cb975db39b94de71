"""Prints what a training run reached, and the paths of its log, checkpoint and figure."""

import argparse
from pathlib import Path

from _runs import SCALARS, find_run, read_scalars


def newest(folder: Path, pattern: str) -> Path | None:
    """Find the file that was written last, or None if there is none."""
    return max(folder.rglob(pattern), key=lambda path: path.stat().st_mtime, default=None)


def summarize(work_dir: Path, key: str = 'accuracy/top1') -> str:
    """Describe the last run in one line.

    Args:
        work_dir (Path): The run's ``--work-dir``.
        key (str): The name of the metric. Defaults to ``'accuracy/top1'``.

    Returns:
        str: Metric, log, checkpoint and figure; "none" for those that the run did not write.
    """
    run = find_run(work_dir)
    records = reversed(read_scalars(run / SCALARS))
    value = next((record[key] for record in records if key in record), None)
    marker = work_dir / 'last_checkpoint'
    parts = {
        key: None if value is None else f'{value:.2f}',
        'log': newest(run, '*.log'),
        'checkpoint': marker.read_text().strip() if marker.exists() else None,
        'figure': newest(run, 'mixed_samples*.png'),
    }
    return ' | '.join(f'{name}: {part or "none"}' for name, part in parts.items())


def main() -> None:
    """Print the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', type=Path, help='the --work-dir of the training')
    parser.add_argument('--key', default='accuracy/top1', help='the metric to print (default: %(default)s)')
    args = parser.parse_args()
    print(summarize(args.work_dir, args.key))


if __name__ == '__main__':
    main()
