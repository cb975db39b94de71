"""Learning rate schedules that scale with the length of a run."""

import os
from collections.abc import Sequence
from functools import cache
from typing import Any

from mmengine.config import Config
from mmengine.config.utils import ConfigParsingError
from mmengine.logging import print_log
from mmengine.optim.scheduler import LinearLR
from mmengine.registry import PARAM_SCHEDULERS

from ..utils.metafiles import metafiles_parsed_once

_LENGTHS = ('max_epochs', 'max_iters')
# The arguments of MMEngine's schedulers that are positions or durations: single numbers, and lists.
_STEPS = ('begin', 'end', 'T_max', 'total_steps', 'step_size')
_LISTS = ('milestones', 'periods')
_WARM_UPS = ('LinearLR', 'ConstantLR', 'ShortLinearLR')


@PARAM_SCHEDULERS.register_module()
class ShortLinearLR(LinearLR):
    """:class:`mmengine.optim.LinearLR` for a warm-up of less than an epoch, which may last no iteration or only one.

    A warm-up needs two iterations: with one, the rate would stay at ``start_factor``. A shorter one is left out.
    Arguments are those of ``LinearLR``, with ``convert_to_iter_based=True``.
    """

    @classmethod
    def build_iter_from_epoch(cls, *args, begin: float = 0, end: float, epoch_length: int, **kwargs) -> 'ShortLinearLR':
        # The parent multiplies by epoch_length again and rounds down: half an iteration more is safe from rounding
        # errors.
        first, last = int(begin * epoch_length), int(end * epoch_length)
        if last - first < 2:
            last, kwargs['start_factor'] = first + 1, 1.0
        return super().build_iter_from_epoch(
            *args,
            begin=(first + 0.5) / epoch_length,
            end=(last + 0.5) / epoch_length,
            epoch_length=epoch_length,
            **kwargs,
        )


def fit_schedule(cfg: Config) -> None:
    """Scale ``param_scheduler`` if the run is shorter than the one that the schedule was written for, and log it.

    The length that a schedule was written for is ``train_cfg.max_epochs`` (or ``max_iters``) of the config's file, or
    of the nearest of its bases with the same schedule and another length. This covers both ``--cfg-options
    train_cfg.max_epochs=2`` and a config that inherits a schedule. Without a file it is the largest ``end`` of the
    schedule. In a longer run, parts that ended with the run still do; other parts, such as warm-ups, stay as they are.

    Args:
        cfg (Config): The config, changed in place.

    Raises:
        ValueError: If a part of the schedule would begin after the end of the run, and the length that it was written
            for is unknown.
    """
    found = _length(cfg.get('train_cfg'))
    schedule = cfg.get('param_scheduler')
    if found is None or not schedule:
        return
    key, length = found
    by_name = None if isinstance(schedule, Sequence) or 'type' in schedule else schedule
    groups = list(by_name.values()) if by_name else [schedule]
    parts = [part for group in groups for part in (group if isinstance(group, Sequence) else [group])]
    parts = [part for part in parts if isinstance(part, dict)]
    written = _written_length(cfg, key, length) or _largest_end(parts, key, length)
    if written is None or written == length:
        _check_begins(parts, key, length)
        return
    before = [dict(part) for part in parts]  # For the log.
    dropped = []
    for part in parts:
        if length < written:
            if not _scale(part, length / written):
                dropped.append(id(part))
        elif part.get('end') == written and _in_unit(part, key):
            part['end'] = length
            if part.get('T_max') == written - part.get('begin', 0):
                part['T_max'] = length - part.get('begin', 0)
    changed = [
        f'{old["type"]} left out' if id(part) in dropped else f'{old["type"]} {_changes(old, part)}'
        for old, part in zip(before, parts)
        if id(part) in dropped or old != part
    ]
    for group in [*groups, schedule]:  # In place, since the config holds these lists.
        if isinstance(group, list):
            group[:] = [part for part in group if id(part) not in dropped]
    if changed:
        print_log(
            f'param_scheduler: written for train_cfg.{key}={written}, and this run has {length}; it was fitted: '
            f'{"; ".join(changed)}.'
        )


def _length(train_cfg: Any) -> tuple[str, int] | None:
    """The unit in which a training is measured, and its length in it."""
    for key in _LENGTHS:
        if isinstance(train_cfg, dict) and isinstance(train_cfg.get(key), int):
            return key, train_cfg[key]
    return None


def _in_unit(part: dict, key: str) -> bool:
    return part.get('by_epoch', True) == (key == 'max_epochs')


def _largest_end(parts: Sequence[dict], key: str, length: int) -> int | None:
    """The end of the schedule if the run stops before it; None otherwise."""
    ends = [part['end'] for part in parts if _in_unit(part, key) and isinstance(part.get('end'), int)]
    begins = [part.get('begin', 0) for part in parts if _in_unit(part, key)]
    # If another part begins at the largest end, it is the end of a warm-up, and says nothing about the run.
    return max(ends) if ends and max(ends) > max(begins) and max(ends) > length else None


def _check_begins(parts: Sequence[dict], key: str, length: int) -> None:
    for part in parts:
        if _in_unit(part, key) and part.get('begin', 0) >= part.get('end', length):
            raise ValueError(
                f'param_scheduler: {part["type"]} has begin={part["begin"]}, where the run ends at '
                f'train_cfg.{key}={length}, and it is not known for which length it was written; give it an end=, or '
                'write the schedule for this run'
            )


def _written_length(cfg: Config, key: str, length: int) -> int | None:
    """The length in the nearest file that has the same schedule and another length than this run; else this run's."""
    files = [cfg.filename] if getattr(cfg, 'filename', None) else []
    schedule = _plain(cfg.param_scheduler)
    found = None
    for path in files:  # The list grows in the loop: bases of bases follow.
        try:
            theirs, said, bases = _read(os.fspath(path))
        except (OSError, ConfigParsingError, SyntaxError, AttributeError, KeyError, TypeError, ImportError):
            continue  # Some bases can only be read together with the file that inherits them.
        if theirs != schedule:
            continue
        if said is not None and said[0] == key:
            if said[1] != length:
                return said[1]
            found = length
        files.extend(bases)
    return found


@cache
def _read(path: str) -> tuple[Any, tuple[str, int] | None, list[str]]:
    """The schedule and the length of a config file, and the paths of its bases."""
    with metafiles_parsed_once():
        cfg = Config.fromfile(path)
        bases = [Config._get_cfg_path(base, path)[0] for base in Config._get_base_files(path)]
    return _plain(cfg.get('param_scheduler')), _length(cfg.get('train_cfg')), bases


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _scale(part: dict, ratio: float) -> bool:
    """Scale a part of the schedule in place; False if nothing is left of it."""
    kind = str(part.get('type', '')).rsplit('.', 1)[-1]
    if part.get('convert_to_iter_based'):
        # Fractions of epochs, which become whole iterations. Rounded, since 0.1 * 30 / 3 is not exactly 1.
        for name in _STEPS:
            if isinstance(part.get(name), int | float):
                part[name] = _rounded(part[name] * ratio)
        for name in _LISTS:
            if name in part:
                part[name] = [_rounded(each * ratio) for each in part[name]]
        if kind == 'LinearLR' and 'end' in part:
            part['type'] = 'ShortLinearLR'
        return True
    for name in _STEPS:
        if isinstance(part.get(name), int | float):
            part[name] = round(part[name] * ratio)
    for name in ('T_max', 'total_steps', 'step_size'):
        if name in part:
            part[name] = max(part[name], 1)
    for name in _LISTS:
        if name in part:
            part[name] = [max(round(each * ratio), 1) for each in part[name]]
    if 'end' not in part:
        return True
    begin = part.get('begin', 0)
    if kind in _WARM_UPS and part['end'] - begin < 2:
        return False
    part['end'] = max(part['end'], begin + 1)
    return True


def _rounded(value: float) -> float | int:
    value = round(value, 9)
    return int(value) if value == int(value) else value


def _changes(old: dict, new: dict) -> str:
    return ', '.join(
        f'{name} {old[name]} -> {new[name]}' for name in (*_STEPS, *_LISTS) if name in old and old[name] != new[name]
    )
