"""A hook that stops a training whose loss has become NaN."""

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor

from ...utils.numbers import check_number
from ...utils.wrappers import unwrapped


@HOOKS.register_module()
class NonFiniteLossHook(Hook):
    """Stop when the loss was NaN or infinite in several steps in a row, on any process.

    One such step is normal: mixed precision skips it, and lowers its scale. After several, the weights do not recover,
    and each further checkpoint would replace a good one. The count stays on the device and is read only every
    ``patience`` iterations, so that steps do not wait for it. All processes stop together.

    ``tools/train.py`` adds this hook to every training, as ``default_hooks.finite_loss``.

    Args:
        patience (int): Steps in a row that stop the run, >= 1. Defaults to 5.

    Raises:
        ValueError: If ``patience`` is not a positive integer.
        FloatingPointError: When training, if the loss stays NaN or infinite.

    Examples:
        >>> default_hooks = dict(finite_loss=dict(type='NonFiniteLossHook', patience=20))
    """

    def __init__(self, patience: int = 5) -> None:
        allowed = 'an integer of at least 1.'
        check_number('NonFiniteLossHook: patience', patience, allowed, least=1, integer=True)
        self.patience = patience
        self._count: Tensor | None = None

    def before_train(self, runner) -> None:
        self._count = None

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Count the steps in a row, and stop when there are too many."""
        losses = _losses(outputs)
        # Losses can be plain numbers, or lie on several devices: all are counted on one.
        device = next((value.device for value in losses.values() if value.device.type != 'cpu'), torch.device('cpu'))
        bad = torch.zeros((), dtype=torch.bool, device=device)
        for value in losses.values():
            bad = bad | (~torch.isfinite(value).all()).to(device)
        count = torch.zeros((), dtype=torch.int64, device=bad.device) if self._count is None else self._count
        self._count = torch.where(bad, count.to(bad.device) + 1, 0)
        if (runner.iter + 1) % self.patience:
            return
        # The largest count of all processes, so that all of them stop in the same iteration.
        worst = self._count.clone()
        all_reduce(worst, 'max')
        if worst >= self.patience:
            raise FloatingPointError(self._describe(runner, int(worst), losses))

    def _describe(self, runner, steps: int, losses: dict[str, Tensor]) -> str:
        last = runner.message_hub.runtime_info.get('last_ckpt')
        names = [name for name, value in losses.items() if not torch.isfinite(value).all()] or ['of another process']
        weights = [name for name, weight in unwrapped(runner.model).named_parameters() if not is_finite(weight)]
        return (
            f'NonFiniteLossHook: the loss ({", ".join(names)}) is NaN or infinite since iteration '
            f'{runner.iter + 2 - steps}, {steps} steps in a row; training stops at iteration {runner.iter + 1}. '
            + (f'{len(weights)} weights are, too ({weights[0]} ...). ' if weights else 'All weights are finite. ')
            + 'Look at the data of that iteration, the learning rate (optim_wrapper.optimizer.lr), clipping '
            '(optim_wrapper.clip_grad) and the precision (bfloat16 in place of float16). '
            + (f'The last good checkpoint is {last}' if last else 'There is no checkpoint yet')
        )


def _losses(outputs) -> dict[str, Tensor]:
    """The total loss and its parts, in what a training step returns."""
    found = outputs if isinstance(outputs, dict) else {}
    losses = {name: torch.as_tensor(value) for name, value in found.items() if 'loss' in name and _is_number(value)}
    # The total comes last, so that an error names the part that is to blame first.
    return dict(sorted(losses.items(), key=lambda item: item[0] == 'loss'))


def _is_number(value) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.is_floating_point())


def is_finite(tensor: Tensor) -> bool:
    """Whether all elements of a tensor, or of this process's shard of it, are finite; True for dtypes without NaN."""
    local = getattr(tensor, '_local_tensor', tensor)
    if not local.is_floating_point() or local.itemsize < 2 or local.is_meta:
        return True
    return bool(torch.isfinite(local).all())
