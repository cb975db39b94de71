"""Kills a run at each write, rename and removal of a save, one by one, and looks whether it can go on.

Each run is a forked process that sends itself SIGKILL, so no `finally` and no handler helps it. Writes are cut in half.
"""

import builtins
import io
import json
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.hooks import CheckpointHook, Hook
from safetensors.torch import load_file

from mergemix_mm.engine.hooks import AtomicCheckpointHook, SavePretrainedHook

# Autograd starts its threads at the first backward pass of a process: none if that is on the CPU, and some if it is on
# fake tensors, after which no child of the process can train. So the first one is here.
torch.zeros((), requires_grad=True).backward()

CHECKPOINTS = ('_save_checkpoint_with_step', '_save_best_checkpoint')
WATCHED = ('os.rename', 'os.remove', 'os.rmdir', 'os.mkdir', 'os.link', 'os.symlink', 'os.truncate')


class Steps:
    """Counts what this process changes on the disk while it saves below a folder, and ends it at one of the steps."""

    def __init__(self, folder: Path, at: int | None = None) -> None:
        self.folder, self.at = os.path.realpath(folder), at
        self.names: list[str] = []
        self._saving = 0

    def install(self) -> None:
        """Watch this process from now on; there is no way back."""
        saves = (
            *((hook, CHECKPOINTS) for hook in (AtomicCheckpointHook, CheckpointHook)),
            (SavePretrainedHook, ('_save',)),
        )
        for hook, names in saves:
            for name in names:
                setattr(hook, name, self._saves(getattr(hook, name)))
        opened = io.open

        def cut(path, mode='r', *args, **kwargs):
            file = opened(path, mode, *args, **kwargs)
            watched = self._saving and not isinstance(path, int) and any(letter in mode for letter in 'wax+')
            return CutFile(file, self, path) if watched else file

        builtins.open = io.open = cut
        sys.addaudithook(self._audit)

    def take(self, name: str, path: str | os.PathLike) -> bool:
        """Count a step; whether it is the one to end at."""
        inside = self._saving and os.path.realpath(os.fspath(path)).startswith(self.folder)
        if inside:
            self.names.append(f'{name} {os.path.relpath(os.path.realpath(path), self.folder)}')
        return bool(inside and len(self.names) == self.at)

    def _saves(self, save: Callable) -> Callable:
        def watched(*args, **kwargs):
            self._saving += 1
            try:
                return save(*args, **kwargs)
            finally:
                self._saving -= 1

        return watched

    def _audit(self, event: str, args: tuple) -> None:
        if not self._saving:
            return
        writes = event == 'open' and isinstance(args[0], str) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in WATCHED) and self.take(event, args[0]):
            kill()


class CutFile:
    """An open file; the write to end at gets half of its bytes to the disk."""

    def __init__(self, file, steps: Steps, path) -> None:
        self._file, self._steps, self._path = file, steps, path

    def write(self, data):
        if self._steps.take('write', self._path):
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            kill()
        return self._file.write(data)

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)

    def __getattr__(self, name):
        return getattr(self._file, name)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_child(job: Callable[[], None]) -> int:
    """Run a job in a forked process. Returns its exit status, -9 if it was killed."""
    pid = os.fork()
    if pid == 0:
        try:
            # The threads of OpenMP that the parent has started do not exist in a child, which would wait for them.
            torch.set_num_threads(1)
            job()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class NoteLosses(Hook):
    """Appends the loss of every step to a file, so that two runs can be compared number by number."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        with open(self.path, 'a') as file:
            file.write(json.dumps([runner.iter, float(outputs['loss'])]) + '\n')


def run(
    make: Callable, folder: Path, resume: bool = False, at: int | None = None, quiet: bool = False
) -> tuple[int, list[str]]:
    """Train a Runner in a child. Returns its exit status, and the steps of its saves if it was not killed.

    Args:
        make (Callable): ``make(folder, resume)`` builds the Runner.
        folder (Path): Its work directory.
        resume (bool): Whether it goes on. Defaults to False.
        at (int, optional): The step to end at, from 1. Defaults to None: none.
        quiet (bool): Whether its output goes to a file beside the folder. Defaults to False.
    """
    listing = folder.parent / f'{folder.name}.steps.json'

    def job():
        if quiet:
            output = os.open(folder.parent / f'{folder.name}.txt', os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(output, 1), os.dup2(output, 2)
        steps = Steps(folder, at)
        steps.install()
        runner = make(folder, resume)
        runner.register_hook(NoteLosses(folder.parent / f'{folder.name}.losses.jsonl'))
        runner.train()
        listing.write_text(json.dumps(steps.names))

    status = in_child(job)
    return status, json.loads(listing.read_text()) if status == 0 else []


def checkpoints(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of all checkpoints in a folder, and the names of all else that a save can leave there."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == '.pth' and not path.name.startswith('.'):
            try:
                found[path.name] = torch.load(path, weights_only=False)['state_dict']
            except (RuntimeError, EOFError, pickle.UnpicklingError):
                found[f'{path.name}, damaged,'] = {}
        elif (path / 'config.json').is_file():  # What SavePretrainedHook wrote.
            found[path.name] = load_file(path / 'model.safetensors')
        elif path.name.startswith('.') or path.name == 'last_checkpoint':
            found[path.name] = path.read_text() if path.is_file() else 'folder'
    return found


def differences(folder: Path, whole: Path) -> list[str]:
    """What two finished runs differ in: their checkpoints, bit by bit, and the last loss of every step."""
    found, wanted = checkpoints(folder), checkpoints(whole)
    lines = [f'{name} is in one of them only' for name in sorted(set(found) ^ set(wanted))]
    for name in sorted(set(found) & set(wanted) - {'last_checkpoint'}):
        lines += [
            f'{name}: {key} differs' for key, value in wanted[name].items() if not torch.equal(found[name][key], value)
        ]
    names = [Path(one['last_checkpoint']).name for one in (found, wanted)]
    if names[0] != names[1]:
        lines.append(f'last_checkpoint names {names[0]}, not {names[1]}')
    losses = [_losses(one) for one in (folder, whole)]
    lines += [f'loss of iteration {step}: {losses[0].get(step)}, not {losses[1][step]}' for step in losses[1]
              if losses[0].get(step) != losses[1][step]]  # fmt: skip
    return lines


def _losses(folder: Path) -> dict[int, float]:
    lines = (folder.parent / f'{folder.name}.losses.jsonl').read_text().splitlines()
    return dict(json.loads(line) for line in lines)
