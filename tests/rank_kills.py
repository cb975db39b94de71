"""A hook that ends a training process; tests/fuzz/ranks.py has its configs import it."""

import os
import signal

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

# How many tensors of its part of a sharded checkpoint the process has written when it is ended.
WRITTEN = 5


@HOOKS.register_module()
class KillRank(Hook):
    """Ends one process by SIGKILL, so that no handler and no `finally` helps it.

    Args:
        step (int, optional): Before this step, from 0. Defaults to None: in no step.
        save (int, optional): In this save of the process, from 1, with half of its part of a sharded checkpoint
            written. Defaults to None: in no save.
        rank (int): The process. Defaults to 0.
    """

    def __init__(self, step: int | None = None, save: int | None = None, rank: int = 0) -> None:
        self.step, self.save, self.rank = step, save, rank
        self._saves = 0

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if runner.iter == self.step and get_rank() == self.rank:
            _kill()

    def before_save_checkpoint(self, runner, checkpoint) -> None:
        self._saves += 1
        if self._saves == self.save and get_rank() == self.rank:
            save, written = torch.save, []

            def cut(*args, **kwargs):
                written.append(1)
                return save(*args, **kwargs) if len(written) <= WRITTEN else _kill()

            torch.save = cut


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
