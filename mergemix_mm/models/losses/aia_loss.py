"""Attention interaction alignment as a loss module (https://arxiv.org/abs/2511.22663), and its targets by layer.

A curve is a pair of lists with one number per layer: targets in [0, 1], and thresholds (delta of the Huber loss) > 0.
Tasks are generation (``'gen'``) and understanding (``'und'``).
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from mmengine.dist import all_reduce
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...functional import aia_loss
from ...utils.numbers import is_number
from ...utils.text import shown

Curve = tuple[list[float], list[float]]
TASKS = ('gen', 'und')
# The paper's table: first layer, end, target, delta. Both models share it, except for Emu3's last layer.
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
# Thresholds of a measured curve are its standard deviations, but at least the paper's smallest threshold.
SMALLEST_DELTA = 0.05
# Weights per task in the released code.
RELEASED_WEIGHTS = dict(gen=5.0, und=10.0)
# Largest weight that a ratio of loss values may ask for: the paper's lambda.
LARGEST_WEIGHT = 40.0


@MODELS.register_module()
class AIALoss(nn.Module):
    """Weighted Huber loss between the interaction intensities of layers and their targets.

    Generation (``'gen'``) and understanding (``'und'``) have targets and weights of their own; the loss itself is
    :func:`mergemix_mm.functional.aia_loss`.

    Args:
        targets (str | dict): Where the curves come from:

            - ``'janus_pro'`` or ``'emu3'``: the paper's table; for other depths, its ranges by relative depth;
            - a path that ends in ``.json``: a measured curve, see :func:`read_curves`;
            - ``dict(gen=[...], und=[...])``, one of them or both, with stages
              ``dict(layers=(0, 10), target=0.4, delta=0.2)`` (end not included) or ``dict(depth=(0.0, 0.5), ...)``.

            A delta of 1 makes the loss quadratic everywhere, which switches Huber off. Defaults to ``'janus_pro'``.
        weight (float | dict, optional): A number >= 0; or ``dict(type='ratio', ntp_over_aia=50)``, the weight with
            which the next-token loss is 50 times the weighted loss, at most 40; or one of these per task,
            ``dict(gen=5.0, und=10.0)``. Defaults to None: 5 and 10, as in the released code.
        schedule (Sequence[tuple[float, float]], optional): Points (progress, factor) with rising progress in [0, 1].
            The weight is multiplied by the factor at the progress given to :meth:`set_progress`: linear between the
            points, constant outside. ``[(0, 0), (0.1, 1)]`` warms up. Defaults to None: a factor of 1.

    Raises:
        ValueError: If an argument cannot be used.
    """

    def __init__(
        self,
        targets: str | dict = 'janus_pro',
        weight: float | dict | None = None,
        schedule: Sequence[tuple[float, float]] | None = None,
    ) -> None:
        super().__init__()
        self._curves = load_targets(targets)
        self.weights = _weights(RELEASED_WEIGHTS if weight is None else weight)
        self.schedule = _check_schedule(schedule)
        self.factor = 1.0
        self.set_progress(0.0)  # The factor at the start, until a hook reports progress.

    def set_progress(self, progress: float) -> None:
        """Set the progress of training, in [0, 1], from which a schedule takes its factor."""
        if self.schedule is not None:
            self.factor = _interpolate(self.schedule, progress)

    def curve(self, task: str, num_layers: int) -> Curve:
        """Targets and thresholds of a task, one each per layer of a model.

        Raises:
            ValueError: For an unknown task, or stages that do not cover the layers.
        """
        if task not in self._curves:
            raise ValueError(f'AIALoss: task={task!r} has no targets; those of {list(self._curves)} are given')
        return self._curves[task](num_layers)

    def forward(
        self,
        intensity: Tensor,
        task: str,
        valid: Tensor | None = None,
        ntp_loss: Tensor | None = None,
        layers: Sequence[int] | None = None,
        num_layers: int | None = None,
        share: float | Tensor = 1.0,
    ) -> Tensor:
        """Calculate the weighted loss. With a ratio as weight this is a collective: all ranks use the same weight.

        Args:
            intensity (Tensor): [layers, B], in [0, 1].
            task (str): ``'gen'`` or ``'und'``.
            valid (Tensor, optional): [B] bool, the samples that count. Defaults to None: all.
            ntp_loss (Tensor, optional): The next-token loss of this batch, which a ratio needs. Defaults to None.
            layers (Sequence[int], optional): Which layers the rows are. Defaults to None: all, from 0.
            num_layers (int, optional): Layers of the model. Defaults to None: the number of rows.
            share (float | Tensor): Number of samples that count on this rank over the mean of that number over all
                ranks. DDP's mean over the ranks is then the mean over all samples. Defaults to 1.0.

        Returns:
            Tensor: [], float32.

        Raises:
            ValueError: If the task or the layers have no targets, or `ntp_loss` is missing.
        """
        num_layers = len(intensity) if num_layers is None else num_layers
        layers = range(num_layers) if layers is None else layers
        target, delta = (
            intensity.new_tensor([values[layer] for layer in layers]) for values in self.curve(task, num_layers)
        )
        loss = share * aia_loss(intensity, target, delta, valid)
        return self.factor * self._weight(task, loss, ntp_loss) * loss

    def _weight(self, task: str, loss: Tensor, ntp_loss: Tensor | None) -> float | Tensor:
        weight = self.weights.get(task)
        if weight is None:
            raise ValueError(f'AIALoss: weight={self.weights} has none for task={task!r}')
        if not isinstance(weight, dict):
            return weight
        if ntp_loss is None:
            raise ValueError("AIALoss: weight=dict(type='ratio', ...) needs the next-token loss: forward(ntp_loss=...)")
        values = torch.stack([ntp_loss.detach().to(loss.dtype), loss.detach()])
        # Of all ranks together: with weights of their own, they would average gradients of different losses.
        all_reduce(values, 'mean')
        wanted = values[0] / weight['ntp_over_aia']
        # Near its target the loss falls with the square of the error and its gradient linearly: without a limit, the
        # weighted gradient would grow as the error vanishes.
        return (wanted / values[1].clamp(min=torch.finfo(loss.dtype).tiny)).clamp(max=LARGEST_WEIGHT)


def _weights(weight: float | dict) -> dict[str, float | dict]:
    per_task = weight if isinstance(weight, dict) and 'type' not in weight else dict.fromkeys(TASKS, weight)
    if not per_task or not set(per_task) <= set(TASKS):
        raise ValueError(f'AIALoss: weight={weight!r} must be a number, a ratio, or one per task of {list(TASKS)}')
    for value in per_task.values():
        if isinstance(value, dict):
            usable = set(value) == {'type', 'ntp_over_aia'} and value['type'] == 'ratio'
            usable = usable and is_number(value['ntp_over_aia'], above=0)
        else:
            usable = is_number(value, least=0)
        if not usable:
            raise ValueError(
                f"AIALoss: weight {value!r} must be a number >= 0 or dict(type='ratio', ntp_over_aia=<number > 0>)"
            )
    return dict(per_task)


def _check_schedule(schedule: Sequence[tuple[float, float]] | None) -> list[tuple[float, float]] | None:
    if schedule is None:
        return None
    usable = bool(schedule) and all(_is_point(point) for point in schedule)
    points = [(point[0], point[1]) for point in schedule] if usable else []
    if not usable or not all(before[0] < after[0] for before, after in pairwise(points)):
        raise ValueError(
            f'AIALoss: schedule={schedule!r} must be points (progress, factor) with rising progress in [0, 1] and '
            'factors >= 0'
        )
    return points


def _is_point(point: object) -> bool:
    """Whether it is a pair of a progress and a factor."""
    if not isinstance(point, Sequence) or len(point) != 2:
        return False
    return is_number(point[0], least=0, most=1) and is_number(point[1], least=0)


def _interpolate(points: list[tuple[float, float]], place: float) -> float:
    for (start, low), (end, high) in pairwise(points):
        if start <= place <= end:
            return low + (place - start) / (end - start) * (high - low)
    return points[0][1] if place < points[0][0] else points[-1][1]


def load_targets(targets: str | dict) -> dict[str, Callable[[int], Curve]]:
    """Resolve the targets of :class:`AIALoss`.

    Returns:
        dict[str, Callable[[int], Curve]]: for each task a function from the number of layers to the task's curve. The
        function raises a ValueError if its stages do not cover the layers.

    Raises:
        ValueError: If the targets cannot be used.
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
        stages (Sequence[dict]): Each ``dict(layers=(first, end), target=..., delta=...)``, `end` not included; or with
            ``depth=(first, end)`` instead, shares of the model's depth in [0, 1]. Layer l of n lies at (l + 0.5) / n.
        num_layers (int): Layers of the model.

    Raises:
        ValueError: If a layer belongs to no stage or to several, or a stage goes beyond the last layer.
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
            both, with one number per layer of the measured model. Other keys are ignored.

    Raises:
        ValueError: If the file does not hold such curves.
    """
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
    except OSError as error:
        raise ValueError(f'AIALoss: targets={str(path)!r} cannot be read: {error.strerror}') from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f'AIALoss: targets={str(path)!r} is not a JSON file: {shown(error, 200)}') from error
    tasks = [task for task in TASKS if isinstance(content, dict) and isinstance(content.get(task), dict)]
    if not tasks:
        raise ValueError(
            f'AIALoss: {path} holds no curve; it needs {{"gen": {{"mean": [...], "std": [...]}}, "und": ...}}, or one '
            'of the two'
        )
    return {task: _read_curve(content[task], f'{path}: {task}') for task in tasks}


def resampled_curve(mean: Sequence[float], std: Sequence[float], num_layers: int) -> Curve:
    """A measured curve for a model of any depth, linear in the relative depth of the layers.

    Targets are the means. Thresholds are the standard deviations over samples, at least 0.05, so that a sample's loss
    is quadratic within the natural spread.
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


def _resample(values: Sequence[float], num_layers: int) -> list[float]:
    """Interpolate between the middles of the layers; constant outside."""
    count, found = len(values), []
    for layer in range(num_layers):
        place = min(max((layer + 0.5) * count / num_layers - 0.5, 0), count - 1)
        left = int(place)
        right = min(left + 1, count - 1)
        found.append(values[left] + (place - left) * (values[right] - values[left]))
    return found
