"""Reads the work directories of trainings: what MMEngine logged, with which config, and whether the run finished."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCALARS = 'vis_data/scalars.json'


def read_scalars(path: Path) -> list[dict[str, Any]]:
    """The records that a run has logged, one per line; a last line that was cut off is left out."""
    records = []
    for line in path.read_text(encoding='utf-8').splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return [record for record in records if isinstance(record, dict)]


def starts(work_dir: Path) -> list[Path]:
    """The folders of all starts of training in a work directory, oldest first. MMEngine names them by time."""
    return sorted(path.parent.parent for path in work_dir.glob(f'*/{SCALARS}'))


def find_run(work_dir: Path) -> Path:
    """The folder of the last start in a work directory."""
    found = starts(work_dir)
    if not found:
        raise SystemExit(f'WORK_DIR={work_dir}: no training run has written its values there yet')
    return found[-1]


def find_work_dirs(paths: Sequence[Path]) -> list[Path]:
    """The work directories that paths name or contain, at any depth.

    Raises:
        SystemExit: If a path contains none.
    """
    found: dict[Path, None] = {}
    for path in paths:
        inside = [path] if starts(path) else sorted({one.parents[2] for one in path.rglob(f'*/{SCALARS}')})
        if not inside:
            raise SystemExit(f'WORK_DIR={path}: no training run has written its values in this folder or below it')
        found |= dict.fromkeys(inside)
    return list(found)


@dataclass
class Run:
    """One training.

    Args:
        work_dir (Path): Its folder.
        name (str): The name of its config, or of the folder if there is no config.
        settings (dict[str, Any]): The entries of the config that a result depends on, by their dotted keys.
        seeds (tuple): All seeds in the config, as pairs of key and number.
        total (int | None): Epochs, or iterations, of the whole training; None if the config does not say.
        values (dict[int, float]): The metric by the epoch, or iteration, of each validation.
        metrics (set[str]): All that validations have logged.
    """

    work_dir: Path
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    seeds: tuple = ()
    total: int | None = None
    values: dict[int, float] = field(default_factory=dict)
    metrics: set[str] = field(default_factory=set)

    @property
    def reached(self) -> int:
        """The last epoch, or iteration, that was validated; 0 if none was."""
        return max(self.values, default=0)

    @property
    def finished(self) -> bool:
        """Whether the end of the training was validated: MMEngine always validates after the last epoch."""
        return self.reached > 0 and (self.total is None or self.reached >= self.total)


# The parts of a config that a result depends on.
RESULT_KEYS = (
    'model',
    'data_preprocessor',
    'train_dataloader',
    'val_dataloader',
    'val_evaluator',
    'optim_wrapper',
    'param_scheduler',
    'train_cfg',
    'load_from',
)


def read_run(work_dir: Path, metric: str) -> Run:
    """Read a work directory: all starts since the last one that did not resume an earlier one.

    Args:
        work_dir (Path): The folder.
        metric (str): The key of the metric in the log.
    """
    run = Run(work_dir, work_dir.name)
    for start in starts(work_dir):
        cfg, text = _config(start / 'vis_data' / 'config.py')
        if not cfg.get('resume'):
            run.values, run.metrics = {}, set()
        for record in read_scalars(start / SCALARS):
            if 'iter' in record or 'step' not in record:  # A record of training.
                continue
            run.metrics |= {key for key in record if key not in ('step', 'time', 'data_time')}
            if metric in record:
                run.values[int(record['step'])] = float(record[metric])
        if cfg:
            run.name = _name(work_dir, text)
            # The checkpoint that a run resumes is its own.
            kept = {
                key: cfg[key] for key in RESULT_KEYS if key in cfg and not (key == 'load_from' and cfg.get('resume'))
            }
            flat = dict(_flatten(kept | _randomness(cfg)))
            run.seeds = tuple(
                (key, value) for key, value in sorted(flat.items()) if _is_seed(key) and value is not None
            )
            run.settings = {key: value for key, value in flat.items() if not _is_seed(key)}
            loop = cfg.get('train_cfg') or {}
            run.total = loop.get('max_epochs') or loop.get('max_iters')
    return run


def _config(path: Path) -> tuple[dict[str, Any], str]:
    from mmengine.config import Config  # Not at the top: readers of scalars do without.

    if not path.is_file():
        return {}, ''
    return Config.fromfile(path, import_custom_modules=False).to_dict(), path.read_text(encoding='utf-8')


def _name(work_dir: Path, text: str) -> str:
    """The name of the config file: MMEngine writes a copy of each config into the work directory."""
    copies = sorted(work_dir.glob('*.py'))
    same = [path for path in copies if path.read_text(encoding='utf-8') == text] or copies
    return same[0].stem if len(same) == 1 else work_dir.name


def _randomness(cfg: dict[str, Any]) -> dict[str, Any]:
    return {'randomness': {'seed': (cfg.get('randomness') or {}).get('seed')}}


def _is_seed(key: str) -> bool:
    return key.rpartition('.')[2] == 'seed'


def _flatten(value: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if not items:  # A plain value, or a container without entries.
        yield prefix, value if items is None else repr(value)
        return
    for key, inner in items:
        yield from _flatten(inner, f'{prefix}.{key}' if prefix else str(key))
