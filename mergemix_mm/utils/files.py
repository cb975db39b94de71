"""Files and folders that appear whole or not at all, whatever stops the program that writes them."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What a place that cannot be written to answers.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_NOT_ALLOWED = {errno.EROFS, errno.EACCES, errno.EPERM}
NEW, OLD = 'new', 'old'


@contextmanager
def replaced_file(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside ``path``, whose file takes its place when the block ends without an error.

    The file is on the disk before it takes the place (``fsync``), so that a power failure leaves the old file or the
    new one. Missing folders are made. The temporary path has the suffix of ``path``, which some writers look at.

    Args:
        path (str | os.PathLike): The file to write.

    Raises:
        OSError: If the place cannot be written to; of a full disk or a read-only folder, one line names the path and
            the free space.
    """
    path = Path(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # One name per process, so that two of them never write into one temporary file.
        temporary = path.with_name(f'.{path.stem}.{os.getpid()}.tmp{path.suffix}')
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; see :func:`replaced_file`."""
    with replaced_file(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def write_json(path: str | os.PathLike, content: Any, default: Callable[[Any], Any] | None = None) -> None:
    """Write a JSON file, whole or not at all; see :func:`replaced_file`.

    Args:
        path (str | os.PathLike): The file to write.
        content (Any): What JSON can hold; NaN and infinity are refused.
        default (Callable, optional): Makes something that JSON can hold of what it cannot. Defaults to None.

    Raises:
        ValueError: If a number is not finite.
        OSError: If the place cannot be written to.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False, default=default) + '\n')


@contextmanager
def replaced_folder(folder: str | os.PathLike, keep: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``folder``, which takes its place when the block ends without an error.

    A folder cannot be replaced in one step: the old one is moved out of the way first. A program that is killed
    between the two steps leaves both of them in a hidden folder, from which :func:`recover_folder` finishes the job.

    Args:
        folder (str | os.PathLike): The folder to write. What stands there is replaced.
        keep (bool): Keep a folder that another process has put there in the meantime. Defaults to False.

    Raises:
        OSError: If the place cannot be written to; of a full disk or a read-only folder, one line names the path and
            the free space.
    """
    folder = Path(folder).absolute()
    with explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        recover_folder(folder)
        work = Path(tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=folder.parent))
        new, old = work / NEW, work / OLD
        try:
            new.mkdir()
            yield new
            sync_tree(new)
            if folder.exists() and not keep:
                folder.rename(old)
            try:
                new.rename(folder)
            except OSError:
                if keep and folder.exists():
                    return
                if old.exists():
                    old.rename(folder)
                raise
            sync(folder.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def recover_folder(folder: str | os.PathLike) -> Path | None:
    """Finish the replacement of a folder by a program that was killed in :func:`replaced_folder`.

    Between its two steps the folder is missing, and the old and the new one stand in a hidden folder beside it: the new
    one, which was complete before the old one was moved, takes the place. Otherwise nothing is changed.

    Args:
        folder (str | os.PathLike): The folder that was to be replaced.

    Returns:
        Path | None: The folder if it was brought back, else None.
    """
    folder = Path(folder).absolute()
    if folder.exists() or not folder.parent.is_dir():
        return None
    works = (path for path in folder.parent.iterdir() if path.name.startswith(f'.{folder.name}.'))
    for work in sorted(work for work in works if (work / OLD).is_dir()):
        found = work / NEW if (work / NEW).is_dir() else work / OLD
        found.rename(folder)
        shutil.rmtree(work, ignore_errors=True)
        return folder
    return None


@contextmanager
def explained(path: str | os.PathLike) -> Iterator[None]:
    """Make one line of what the operating system says of a place that cannot be written to.

    Args:
        path (str | os.PathLike): What is written.

    Raises:
        OSError: Of the same kind and number, naming ``path``, the reason, and the free space of its disk.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            advice = 'free some, or name another place'
        elif error.errno in _NOT_ALLOWED:
            advice = 'name a folder that this user may write to'
        else:
            raise
        raise type(error)(
            error.errno, f'cannot write {path}: {error.strerror}, {free_space(path)} free; {advice}'
        ) from error


def free_space(path: str | os.PathLike) -> str:
    """The free space of the disk that a path lies on, or would lie on, such as ``'12.3 GB'``."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    return f'{shutil.disk_usage(place).free / 1e9:.1f} GB'


def sync(path: str | os.PathLike) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # Some systems do not open folders.
        if os.path.isdir(path):
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # A file system without fsync.
            raise
    finally:
        os.close(handle)


def sync_tree(folder: str | os.PathLike) -> None:
    """Wait until all files of a folder are on the disk."""
    for place, _, names in os.walk(folder):
        for name in names:
            sync(os.path.join(place, name))
        sync(place)
