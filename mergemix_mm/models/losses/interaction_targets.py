"""Where the interaction of each layer should be: targets and thresholds of AIA, by layer, by depth, or measured.

A curve is a pair of lists with one number per layer: targets in [0, 1], and thresholds (delta of the Huber loss) > 0.
Tasks are generation (``'gen'``) and understanding (``'und'``).
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ...utils.numbers import is_number
from ...utils.text import shown

Curve = tuple[list[float], list[float]]
TASKS = ('gen', 'und')
# The paper's table (https://arxiv.org/abs/2511.22663): first layer, end, target, delta. The same for both models, but
# for Emu3's last layer.
_STAGES = dict(
    gen=[(0, 10, 0.4, 0.2), (10, 20, 0.4, 0.1), (20, 25, 0.4, 0.1), (25, 30, 0.2, 0.05)],
    und=[(0, 10, 0.1, 0.05), (10, 20, 0.15, 0.05), (20, 25, 0.3, 0.05), (25, 30, 0.3, 0.05)],
)
_EMU3 = dict(
    gen=[*_STAGES['gen'][:-1], (25, 31, 0.2, 0.05), (31, 32, 0.2, 0.05)],
    und=[*_STAGES['und'][:-1], (25, 31, 0.3, 0.05), (31, 32, 0.2, 0.05)],
)
# Name -> number of layers and stages of each task.
PRESETS = dict(emu3=(32, _EMU3), janus_pro=(30, _STAGES))
# Thresholds of a measured curve are its standard deviations, but not below the paper's smallest one.
SMALLEST_DELTA = 0.05


def load_targets(targets: str | dict) -> dict[str, Callable[[int], Curve]]:
    """What `AIALoss(targets=...)` names: for each task a function from the number of layers to the task's curve.

    Raises:
        ValueError: if the targets cannot be used; a curve function raises if its stages do not cover the layers.
    """
    if isinstance(targets, str) and targets in PRESETS:
        depth, tasks = PRESETS[targets]
        return {task: partial(stage_curve, _by_depth(stages, depth)) for task, stages in tasks.items()}
    if isinstance(targets, str) and targets.endswith('.json'):
        return {task: partial(resampled_curve, *curve) for task, curve in read_curves(targets).items()}
    if not isinstance(targets, dict) or not targets or not set(targets) <= set(TASKS):
        raise ValueError(
            f'AIALoss: targets={targets!r} must be one of {sorted(PRESETS)}, the path of a .json file, or a dict of '
            f'stages for tasks of {list(TASKS)}'
        )
    for stages in targets.values():
        _check_stages(stages)
    return {task: partial(stage_curve, stages) for task, stages in targets.items()}


def stage_curve(stages: Sequence[dict], num_layers: int) -> Curve:
    """The curve of stages that cover all layers once.

    Args:
        stages (Sequence[dict]): each ``dict(layers=(first, end), target=..., delta=...)``, `end` not included, or with
            ``depth=(first, end)`` instead, shares of the model's depth in [0, 1]: layer l of n lies at (l + 0.5) / n.
        num_layers (int): of the model.

    Raises:
        ValueError: if a layer belongs to no stage or to several, or a stage goes beyond the last layer.
    """
    ranges = [_stage_range(stage, num_layers) for stage in stages]
    curve = []
    for layer in range(num_layers):
        inside = [stage for stage, (first, end) in zip(stages, ranges, strict=True) if first <= layer + 0.5 < end]
        if len(inside) != 1:
            extents = [tuple(stage.get('layers') or stage['depth']) for stage in stages]
            raise ValueError(
                f'AIALoss: layer {layer} of {num_layers} belongs to {len(inside)} of the stages {extents}; they must '
                'cover every layer once (the end of a range is not part of it)'
            )
        curve.append((float(inside[0]['target']), float(inside[0]['delta'])))
    return [target for target, _ in curve], [delta for _, delta in curve]


def read_curves(path: str | Path) -> dict[str, tuple[list[float], list[float]]]:
    """Read measured curves: for each task the means and the standard deviations of its layers.

    Args:
        path (str | Path): JSON file with ``{"gen": {"mean": [...], "std": [...]}, "und": {...}}``, one of the tasks or
            both, one number per layer of the measured model; other keys are ignored.

    Raises:
        ValueError: if the file does not hold such curves.
    """
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
    except OSError as error:
        raise ValueError(f'AIALoss: targets={str(path)!r} cannot be read: {error.strerror}') from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f'AIALoss: targets={str(path)!r} is no JSON file: {shown(error, 200)}') from error
    tasks = [task for task in TASKS if isinstance(content, dict) and isinstance(content.get(task), dict)]
    if not tasks:
        raise ValueError(
            f'AIALoss: {path} holds no curve; it needs {{"gen": {{"mean": [...], "std": [...]}}, "und": ...}}, or one '
            'of the two'
        )
    return {task: _read_curve(content[task], f'{path}: {task}') for task in tasks}


def resampled_curve(mean: Sequence[float], std: Sequence[float], num_layers: int) -> Curve:
    """A measured curve for a model of any depth, linear in the relative depth of the layers.

    Targets are the means. Thresholds are the standard deviations over samples, at least 0.05: within its natural spread
    a sample's loss is quadratic.
    """
    targets, deviations = (_resample(values, num_layers) for values in (mean, std))
    return targets, [max(deviation, SMALLEST_DELTA) for deviation in deviations]


def _by_depth(stages: Sequence[tuple[int, int, float, float]], depth: int) -> list[dict]:
    return [
        dict(depth=(first / depth, end / depth), target=target, delta=delta) for first, end, target, delta in stages
    ]


def _read_curve(entry: dict, name: str) -> tuple[list[float], list[float]]:
    for key in ('mean', 'std'):
        values = entry.get(key)
        if not isinstance(values, list) or not values or not all(_is_share(value) for value in values):
            raise ValueError(f'AIALoss: {name}.{key}={shown(repr(values))} must be a list of numbers in [0, 1]')
    if len(entry['mean']) != len(entry['std']):
        raise ValueError(f'AIALoss: {name} has {len(entry["mean"])} means and {len(entry["std"])} standard deviations')
    return entry['mean'], entry['std']


def _check_stages(stages: Sequence[dict]) -> None:
    for stage in stages:
        if set(stage) not in ({'layers', 'target', 'delta'}, {'depth', 'target', 'delta'}):
            raise ValueError(
                f'AIALoss: stage {stage} must have target, delta and one of layers=(first, end), depth=(first, end)'
            )
        if not _is_share(stage['target']) or not is_number(stage['delta'], above=0):
            raise ValueError(f'AIALoss: stage {stage} must have a target in [0, 1] and a delta > 0')
        first, end = stage.get('layers') or stage['depth']
        if not 0 <= first < end or ('depth' in stage and end > 1):
            raise ValueError(f'AIALoss: stage {stage} must have 0 <= first < end (<= 1 for depth)')


def _stage_range(stage: dict, num_layers: int) -> tuple[float, float]:
    if 'depth' in stage:
        return tuple(share * num_layers for share in stage['depth'])
    if stage['layers'][1] > num_layers:
        raise ValueError(f'AIALoss: stage {stage} goes beyond the {num_layers} layers of the model')
    return stage['layers']


def _is_share(value: object) -> bool:
    return is_number(value, least=0, most=1)


def _resample(values: list[float], num_layers: int) -> list[float]:
    """Linear between the middles of the layers, constant outside."""
    count, found = len(values), []
    for layer in range(num_layers):
        place = min(max((layer + 0.5) * count / num_layers - 0.5, 0), count - 1)
        left = int(place)
        right = min(left + 1, count - 1)
        found.append(values[left] + (place - left) * (values[right] - values[left]))
    return found
