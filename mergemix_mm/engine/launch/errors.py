"""Errors that end a program with one message: in the command, the config, checkpoints, images, and full disks."""

import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.runner.checkpoint import CheckpointLoader

from ...utils import files
from ...utils.images import image_name, read_image
from ...utils.safe_load import CheckpointError, guarded_mmengine
from ...utils.text import DataError, one_line, printable
from ..weights.sharded_checkpoint import ShardedCheckpoint, is_sharded

# How MMEngine ends its error for a checkpoint that is missing, or a folder.
_NOT_FOUND = ' can not be found.'


class LaunchError(SystemExit):
    """A mistake in the command or the config: ends the program with a message instead of a traceback.

    Control characters in quoted texts (file names, contents of files) are written out, not sent to the terminal.
    """

    def __init__(self, message: str = '') -> None:
        super().__init__(printable(message))


@contextmanager
def safe_checkpoints(trust: bool = False) -> Iterator[None]:
    """Read all checkpoints (``load_from``, ``--resume``, ``init_cfg``) without running code in them.

    Args:
        trust (bool): Whether ``--trust-checkpoint`` was given. Defaults to False.

    Raises:
        LaunchError: If a file holds more than weights and logs, is damaged, or does not exist.
    """
    with guarded_mmengine(trust), _sharded_checkpoints(trust):
        try:
            yield
        except CheckpointError as error:
            raise LaunchError(str(error)) from None
        except FileNotFoundError as error:
            # MMEngine's own error for a checkpoint has neither number nor name.
            if error.errno is not None or not str(error).endswith(_NOT_FOUND):
                raise
            raise LaunchError(f'CHECKPOINT: there is no file {str(error).removesuffix(_NOT_FOUND)}') from None


@contextmanager
def _sharded_checkpoints(trust: bool) -> Iterator[None]:
    """Let MMEngine read folders of sharded runs as checkpoints, also in runs that are not sharded."""
    load_file = CheckpointLoader._schemes['']

    def load_from_local(filename: str, map_location: Any = None) -> dict:
        return ShardedCheckpoint(filename).whole(trust) if is_sharded(filename) else load_file(filename, map_location)

    CheckpointLoader._schemes[''] = load_from_local
    try:
        yield
    finally:
        CheckpointLoader._schemes[''] = load_file


class UnreadableImageError(ValueError):
    """An image of an inherited pipeline cannot be read; the message names its file."""


@contextmanager
def explain_corrupt_images(*splits: str) -> Iterator[None]:
    """Turn the errors of unreadable images and records into a message that says what to do.

    This covers all that ``LoadImageFromFile`` cannot read (empty, damaged, missing or forbidden files, other content),
    in this process or in workers of a data loader that it forks (MMEngine's default), and the records that a dataset of
    this package refuses.

    Args:
        *splits (str): The splits that are read, for the advice.

    Raises:
        LaunchError: Instead of the error of ``LoadImageFromFile``, and of a ``DataError``.
    """
    try:
        with _named_images():
            yield
    except DataError as error:
        skip = ", or pass over them with on_error='skip' of the dataset" if 'train' in splits else ''
        text = str(error).rstrip('.')
        raise LaunchError(f'{text}. List all such records with tools/check_data.py, and repair them{skip}') from error
    except (AssertionError, UnreadableImageError) as error:
        # The error of a worker holds its whole traceback; the message comes last.
        found = re.findall('failed to load image: (.+)', str(error))
        if not found:
            raise
        advice = 'Restore it, or take it out of the annotations'
        if 'train' in splits:
            advice += (
                ". Or skip such files in training with dict(type='LoadImageFromFile', imdecode_backend='pillow', "
                'ignore_empty=True) in train_dataloader.dataset.pipeline; ignore_empty does not skip all of them with '
                'the default backend'
            )
        raise LaunchError(f'{found[-1]}. {advice}') from error


@contextmanager
def _named_images() -> Iterator[None]:
    """Make ``LoadImageFromFile`` name the file that it cannot read; OpenCV and Pillow see only its content."""
    transform = LoadImageFromFile.transform

    @functools.wraps(transform)
    def named(self: LoadImageFromFile, results: dict) -> dict | None:
        try:
            return transform(self, results)
        except Exception as error:
            path = results.get('img_path')
            if not isinstance(path, (str, os.PathLike)):  # A mistake of the pipeline, not of a file.
                raise
            raise UnreadableImageError(f'failed to load image: {image_name(path)}: {_why(path, error)}') from error

    # On the class: pipelines hold its instances, and workers that are forked later have it too.
    LoadImageFromFile.transform = named
    try:
        yield
    finally:
        LoadImageFromFile.transform = transform


def _why(path: str | os.PathLike, error: Exception) -> str:
    """What is wrong with an image that MMCV cannot read."""
    reason = f'{type(error).__name__}: {one_line(error, 200)}'
    if '://' in os.fspath(path):
        return reason
    try:
        read_image(path, max_pixels=None)
    except ValueError as found:
        return re.sub('^image .*? (cannot be read: |(?=does not|is a ))', '', str(found))
    return f"{reason}; dict(type='LoadImageFromFile', imdecode_backend='pillow') may read it"


@contextmanager
def explain_stops(cfg: Config) -> Iterator[None]:
    """Turn errors that no code can repair into one line: a full disk, a folder without permission, a loss that is NaN.

    Args:
        cfg (Config): The config, for its work directory.

    Raises:
        LaunchError: Instead of those errors.
    """
    try:
        yield
    except FloatingPointError as error:
        raise LaunchError(str(error)) from error
    except Exception as error:
        # It may be a file that is read; only errors of writing are explained here.
        denied = isinstance(error, PermissionError)
        line = None if denied else files.cannot_write(error, cfg.get('work_dir') or '.')
        if line is None:
            raise
        raise LaunchError(str(line.strerror)) from error
