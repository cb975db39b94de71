"""Attention interaction alignment as a loss module (https://arxiv.org/abs/2511.22663)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from mmengine.dist import all_reduce
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...functional import aia_loss
from ...utils.numbers import is_number
from .interaction_targets import TASKS, Curve, load_targets

# Of the released code.
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
            - a path that ends in ``.json``: a measured curve, see :func:`.interaction_targets.read_curves`;
            - ``dict(gen=[...], und=[...])``, one of them or both, with stages
              ``dict(layers=(0, 10), target=0.4, delta=0.2)`` (end not included) or ``dict(depth=(0.0, 0.5), ...)``.

            A delta of 1 makes the loss quadratic everywhere: no Huber. Defaults to ``'janus_pro'``.
        weight (float | dict, optional): A number, ``dict(type='ratio', ntp_over_aia=50)`` (the weight that makes the
            next-token loss so many times the weighted loss, at most 40), or one of them per task, ``dict(gen=5.0,
            und=10.0)``. Defaults to None: those of the released code, 5 and 10.
        schedule (Sequence[tuple[float, float]], optional): Points (progress, factor) with rising progress in [0, 1],
            linear between them and constant outside: the weight at :meth:`set_progress` is multiplied with it. E.g.
            ``[(0, 0), (0.1, 1)]`` warms up. Defaults to None: 1.

    Raises:
        ValueError: if an argument cannot be used.
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
        self.set_progress(0.0)

    def set_progress(self, progress: float) -> None:
        """Say how far training has come, in [0, 1]; only a schedule makes a difference of it."""
        if self.schedule is not None:
            self.factor = _interpolate(self.schedule, progress)

    def curve(self, task: str, num_layers: int) -> Curve:
        """Targets and thresholds of a task, one each per layer of a model.

        Raises:
            ValueError: for an unknown task, or stages that do not cover the layers.
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
        """The weighted loss, a number. With a ratio as weight, a collective: all ranks take the same weight.

        Args:
            intensity (Tensor): [layers, B].
            task (str): ``'gen'`` or ``'und'``.
            valid (Tensor, optional): [B] bool, the samples that count. Defaults to None: all.
            ntp_loss (Tensor, optional): The next-token loss of this batch, which a ratio needs. Defaults to None.
            layers (Sequence[int], optional): Which layers the rows are. Defaults to None: all, from 0.
            num_layers (int, optional): of the model. Defaults to None: the number of rows.
            share (float | Tensor): Number of samples that count here over its mean over the ranks: the mean over the
                ranks of the loss is then that over all their samples. Defaults to 1.0.

        Raises:
            ValueError: if the task or the layers have no targets, or `ntp_loss` is missing.
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
        all_reduce(values, 'mean')
        wanted = values[0] / weight['ntp_over_aia']
        # The loss goes with the squared error: without a limit the gradient would grow as the error vanishes.
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
    points = [tuple(point) if isinstance(point, Sequence) else () for point in schedule]
    usable = all(len(one) == 2 and is_number(one[0], least=0, most=1) and is_number(one[1], least=0) for one in points)
    if not points or not usable or not all(a[0] < b[0] for a, b in pairwise(points)):
        raise ValueError(
            f'AIALoss: schedule={schedule!r} must be points (progress, factor) with rising progress in [0, 1] and '
            'factors >= 0'
        )
    return points


def _interpolate(points: list[tuple[float, float]], place: float) -> float:
    for (start, low), (end, high) in pairwise(points):
        if start <= place <= end:
            return low + (place - start) / (end - start) * (high - low)
    return points[0][1] if place < points[0][0] else points[-1][1]
