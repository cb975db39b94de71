"""A hook that writes checkpoints of tensors and plain values only, so that reading one never runs code."""

from logging import WARNING
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS

from ...utils.safe_load import CheckpointError, plain, restored


@HOOKS.register_module()
class PlainCheckpointHook(Hook):
    """Writes the logs of the message hub as plain numbers, and reads them back when a run resumes.

    MMEngine pickles its log buffers, which refer to functions: only an unpickler that may look up functions reads such
    a file. With this hook, ``torch.load(path, weights_only=True)`` reads a checkpoint anywhere. The tools of this
    package register it themselves. A run that resumes without this hook loses the history of the logs, and MMEngine
    warns about each log.
    """

    # After all hooks that add something to the checkpoint.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self._reported: set[str] = set()

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        unknown: list[str] = []
        try:
            checkpoint.update(plain(dict(checkpoint), unknown))
        except RecursionError:  # A container that holds itself can be pickled, but has no plain form.
            unknown.append('something that holds itself')
        new = sorted(set(unknown) - self._reported)
        self._reported.update(new)
        if new:
            print_log(
                f'The checkpoint holds objects that are neither tensors nor plain values: {", ".join(new[:5])}. It can '
                'be read with --trust-checkpoint only.',
                'current',
                WARNING,
            )

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        problem = find_unresumable(checkpoint) if getattr(runner, '_resume', False) else None
        if problem is not None:
            raise CheckpointError(
                f'--resume: {runner._load_from} cannot be resumed from: {problem}. To start a new training from its '
                'weights, set load_from and leave --resume out'
            )
        restored(checkpoint)


def find_unresumable(content: Any) -> str | None:
    """Why a run cannot resume from what a file holds; None if it can."""
    meta = content.get('meta') if isinstance(content, dict) else None
    is_whole = (
        isinstance(meta, dict) and {'epoch', 'iter'} <= set(meta) and {'state_dict', 'message_hub'} <= set(content)
    )
    return None if is_whole else 'it is not the checkpoint of a training run'
