"""Keeps checkpoints to tensors and plain values, so that reading one never needs to run code."""

from logging import WARNING

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS

from ...utils.safe_load import plain, restored


@HOOKS.register_module()
class PlainCheckpointHook(Hook):
    """Writes the logs of the message hub as plain numbers, and reads them back when a run resumes.

    MMEngine pickles its log buffers, with functions in them: such a file can be read only by an unpickler that may look
    up functions. With this hook, ``torch.load(path, weights_only=True)`` reads a checkpoint anywhere. Tools of this
    package register it by themselves. Resuming with MMEngine without this hook leaves the history of the logs out, and
    MMEngine warns about each.
    """

    # After all hooks that put something into the checkpoint.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self._reported: set[str] = set()

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        unknown: list[str] = []
        try:
            checkpoint.update(plain(dict(checkpoint), unknown))
        except RecursionError:  # What holds itself can be saved, but not written out.
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
        restored(checkpoint)
