"""Atomic writes: files and folders appear whole or not at all, whatever stops the program that writes them."""

import errno
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Error numbers of a full disk, and of a place that this user may not write to.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_NOT_ALLOWED = {errno.EROFS, errno.EACCES, errno.EPERM}
NEW, OLD = 'new', 'old'
# Names of unfinished writes: `.<name>.<process>.tmp<suffix>`, or a folder `.<name>.<process>.<random>.tmp`.
_TEMPORARY = re.compile(r'\.(?P<name>.+)\.(?P<process>\d+)(?:\.\w{8})?\.tmp(?:\.\w+)?')
# The unfinished writes of this process.
_active: set[Path] = set()
# Held while a folder is made and added to `_active`, so that no other thread takes it for a leftover in between.
_noting = threading.Lock()
# Errors of libraries that write files themselves: torch gives no reason, libraries in Rust give the error number.
_WRITER_FAILED = re.compile(r'PytorchStreamWriter|inline_container|unexpected pos|file write failed')
_OS_ERROR = re.compile(r'\(os error (\d+)\)')


@contextmanager
def replaced_file(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside ``path``, whose file replaces ``path`` when the block ends without an error.

    The file is on the disk before it replaces the old one (``fsync``), so that a power failure leaves either the old
    file or the new one. Missing folders are made. The temporary path has the suffix of ``path``, since some writers
    choose the format by it.

    Args:
        path (str | os.PathLike): The file to write.

    Raises:
        OSError: If the place cannot be written to; of a full disk or a read-only folder, one line names the path and
            the free space.
    """
    path = Path(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(path.parent, path.stem)
        # One name per process, so that two of them never write into one temporary file.
        temporary = path.absolute().with_name(f'.{path.stem}.{os.getpid()}.tmp{path.suffix}')
        _active.add(temporary)
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)  # The rename is an entry of the folder, and has to reach the disk as well.
        finally:
            temporary.unlink(missing_ok=True)
            _active.discard(temporary)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; errors as in :func:`replaced_file`."""
    with replaced_file(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def write_json(path: str | os.PathLike, content: Any, default: Callable[[Any], Any] | None = None) -> None:
    """Write a JSON file, whole or not at all.

    Args:
        path (str | os.PathLike): The file to write.
        content (Any): A JSON value; NaN and infinity are refused.
        default (Callable, optional): Converts other values to JSON values. Defaults to None.

    Raises:
        ValueError: If a number is not finite.
        OSError: If the place cannot be written to.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False, default=default) + '\n')


@contextmanager
def replaced_folder(folder: str | os.PathLike, keep: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``folder``, which replaces it when the block ends without an error.

    A folder cannot be replaced in one step: the old one is moved out of the way first. A program that is killed
    between the two steps leaves both of them in a hidden folder, from which :func:`recover_folder` finishes the job.

    Args:
        folder (str | os.PathLike): The folder to write. An old one is replaced.
        keep (bool): Keep a folder that another process put there in the meantime. Defaults to False.

    Raises:
        OSError: If the place cannot be written to; of a full disk or a read-only folder, one line names the path and
            the free space.
    """
    folder = Path(folder).absolute()
    with explained(folder):
        work = begin_replacement(folder)
        try:
            (work / NEW).mkdir()
            yield work / NEW
            finish_replacement(work, folder, keep)
        finally:
            end_replacement(work)


def begin_replacement(path: str | os.PathLike) -> Path:
    """Make a hidden folder beside a path, in which its replacement is written under the name ``new``.

    For writers that cannot use a ``with`` block, such as several processes that write one folder together. The caller
    also calls :func:`end_replacement`, even after an error.

    Args:
        path (str | os.PathLike): The file or folder to write.

    Raises:
        OSError: If the place cannot be written to.
    """
    path = Path(path).absolute()
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(path.parent, path.name)
        with _noting:
            work = Path(tempfile.mkdtemp(prefix=f'.{path.name}.{os.getpid()}.', suffix='.tmp', dir=path.parent))
            _active.add(work)
        return work


def finish_replacement(work: Path, path: str | os.PathLike, keep: bool = False, name: str = NEW) -> None:
    """Put what was written after :func:`begin_replacement` in its place, after it is on the disk.

    Args:
        work (Path): The hidden folder.
        path (str | os.PathLike): The file or folder to write.
        keep (bool): Keep what another process put there in the meantime. Defaults to False.
        name (str): What was written, in the hidden folder. Defaults to ``'new'``.

    Raises:
        OSError: If the place cannot be written to.
    """
    path, new, old = Path(path).absolute(), work / name, work / OLD
    with explained(path):
        if new.is_dir():
            sync_tree(new)
        else:
            sync(new)
        # Only a file can replace a file in one step.
        if new.is_dir() or path.is_dir():
            if path.exists() and not keep:
                path.rename(old)
            try:
                new.rename(path)
            except OSError:
                if keep and path.exists():
                    return
                if old.exists():
                    old.rename(path)
                raise
        else:
            os.replace(new, path)
        sync(path.parent)


def end_replacement(work: Path) -> None:
    """Remove the hidden folder of :func:`begin_replacement`."""
    shutil.rmtree(work, ignore_errors=True)
    _active.discard(work)


def recover_folder(folder: str | os.PathLike) -> Path | None:
    """Finish the replacement of a folder by a program that was killed in :func:`replaced_folder`.

    Between the two steps the folder is missing, and both the old and the new one are in a hidden folder beside it. The
    new one was complete before the old one was moved, so it is put in place. In any other state, and while the program
    still runs, nothing is changed.

    Args:
        folder (str | os.PathLike): The folder that the program was replacing.

    Returns:
        Path | None: The folder if it was restored, else None.
    """
    folder = Path(folder).absolute()
    if folder.exists() or not folder.parent.is_dir():
        return None
    works = [path for path in _temporaries(folder.parent, folder.name) if (path / OLD).exists()]
    for work in sorted(works):
        try:
            (work / NEW if (work / NEW).exists() else work / OLD).rename(folder)
        except FileNotFoundError:  # Another process was faster.
            continue
        shutil.rmtree(work, ignore_errors=True)
        return folder
    return folder if works and folder.exists() else None


def clear_leftovers(folder: str | os.PathLike, name: str | None = None) -> list[Path]:
    """Finish, or remove, what killed programs left in a folder; writes of running programs stay.

    Args:
        folder (str | os.PathLike): The folder; folders inside of it are not searched.
        name (str, optional): Only leftovers of this name. Defaults to None: of all names.

    Returns:
        list[Path]: What was removed.
    """
    folder = Path(folder)
    removed: list[Path] = []
    if not folder.is_dir():
        return removed
    with _noting:
        leftovers = _temporaries(folder, name)
    for path in leftovers:
        found = _TEMPORARY.fullmatch(path.name)
        assert found is not None
        recover_folder(folder / found['name'])
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        removed.append(path)
    return removed


def _temporaries(folder: Path, name: str | None) -> list[Path]:
    """Unfinished writes, by their names, of processes that no longer run."""
    found = ((path.absolute(), _TEMPORARY.fullmatch(path.name)) for path in folder.iterdir() if path.name[0] == '.')
    matching = ((path, match['process']) for path, match in found if match and name in (None, match['name']))
    return [path for path, process in matching if not _writes(process, path)]


def _writes(process: str, path: Path) -> bool:
    """Whether a process may still be writing.

    In a container, a killed process often had the number of this one, so this process looks at its own list.
    """
    if int(process) == os.getpid():
        return path in _active
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # It runs under another user.
        return True
    return True


def check_writable(folder: str | os.PathLike) -> None:
    """Refuse a folder that is not writable, before hours of work end there; a missing one is made.

    Raises:
        OSError: If it cannot be written to; one line names it and the free space.
    """
    folder = Path(folder).absolute()
    with explained(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, FileNotFoundError) as error:
            reason = 'a file is in the way' if not isinstance(error, FileNotFoundError) else error.strerror
            raise WriteError(error.errno, f'cannot write {folder}: {reason}; name another folder') from error
        probe = folder / f'.writable.{os.getpid()}.tmp'
        try:
            probe.write_bytes(bytes(4096))
            sync(probe)
        finally:
            probe.unlink(missing_ok=True)


@contextmanager
def explained(path: str | os.PathLike) -> Iterator[None]:
    """Turn the error of a place that cannot be written to into one line.

    Errors of libraries too: torch raises a RuntimeError that names neither the file nor the reason.

    Args:
        path (str | os.PathLike): What is written, for errors that do not name it.

    Raises:
        OSError: Of the same number, naming the path, the reason, and the free space of its disk.
    """
    try:
        yield
    except Exception as error:
        if (line := cannot_write(error, path)) is None:
            raise
        raise line from error


def cannot_write(error: Exception, path: str | os.PathLike) -> OSError | None:
    """The one-line error for a place that cannot be written to; None for any other error.

    Args:
        error (Exception): What was raised.
        path (str | os.PathLike): What was written, for errors that do not name it.
    """
    if isinstance(error, WriteError):
        return error
    number, named = getattr(error, 'errno', None), getattr(error, 'filename', None)
    if not isinstance(error, OSError):
        found = _OS_ERROR.search(str(error))
        number = int(found[1]) if found else None
        if found is None and _WRITER_FAILED.search(str(error)):
            number = _why(path)
    if number in _NO_ROOM:
        advice = 'free some, or name another place'
    elif number in _NOT_ALLOWED:
        advice = 'name a folder that this user may write to'
    else:
        return None
    place = named if isinstance(named, str | os.PathLike) and Path(named).is_absolute() else path
    return WriteError(number, f'cannot write {place}: {os.strerror(number)}, {free_space(place)} free; {advice}')


class WriteError(OSError):
    """A place cannot be written to; one line names it, the reason, and the free space."""


def _why(path: str | os.PathLike) -> int | None:
    """The error number of writing a megabyte beside a path; None if that works."""
    # Torch has swallowed the error number: meet the error again.
    probe = Path(path).absolute().with_name(f'.why.{os.getpid()}.tmp')
    try:
        probe.write_bytes(bytes(1 << 20))
        sync(probe)
    except OSError as error:
        return error.errno
    finally:
        probe.unlink(missing_ok=True)
    return None


def free_space(path: str | os.PathLike) -> str:
    """The free space of the disk of a path, which need not exist, such as ``'12.3 GB'``."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    return f'{shutil.disk_usage(place).free / 1e9:.1f} GB'


def sync(path: str | os.PathLike) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # Some systems cannot open folders.
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
    for place, _, names in os.walk(os.fspath(folder)):
        for name in names:
            sync(os.path.join(place, name))
        sync(place)
