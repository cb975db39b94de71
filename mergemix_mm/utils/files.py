"""Files and folders that appear whole or not at all, whatever stops the program that writes them."""

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

# What a place that cannot be written to answers.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_NOT_ALLOWED = {errno.EROFS, errno.EACCES, errno.EPERM}
NEW, OLD = 'new', 'old'
# What is being written: `.<name>.<process>.tmp<suffix>`, or a folder `.<name>.<process>.<random>.tmp`.
_TEMPORARY = re.compile(r'\.(?P<name>.+)\.(?P<process>\d+)(?:\.\w{8})?\.tmp(?:\.\w+)?')
# What this process is writing now.
_active: set[Path] = set()
# Held while a folder is made and noted above, so that no other thread takes it for a leftover in between.
_noting = threading.Lock()
# Errors of libraries that write by themselves: torch says only that it could not, Rust's libraries give a number.
_WRITER_FAILED = re.compile(r'PytorchStreamWriter|inline_container|unexpected pos|file write failed')
_OS_ERROR = re.compile(r'\(os error (\d+)\)')


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
        clear_leftovers(path.parent, path.stem)
        # One name per process, so that two of them never write into one temporary file.
        temporary = path.absolute().with_name(f'.{path.stem}.{os.getpid()}.tmp{path.suffix}')
        _active.add(temporary)
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
            _active.discard(temporary)


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
        work = begin_replacement(folder)
        try:
            (work / NEW).mkdir()
            yield work / NEW
            finish_replacement(work, folder, keep)
        finally:
            end_replacement(work)


def begin_replacement(path: str | os.PathLike) -> Path:
    """Make a hidden folder beside a path, in which what is to take its place is written under the name ``new``.

    For writers that a ``with`` block does not fit, such as several processes that write one folder together. Whoever
    begins calls :func:`end_replacement` when done, also after an error.

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


def finish_replacement(work: Path, path: str | os.PathLike, keep: bool = False) -> None:
    """Put what was written after :func:`begin_replacement` in its place, once it is on the disk.

    Args:
        work (Path): The hidden folder.
        path (str | os.PathLike): The file or folder to write.
        keep (bool): Keep what another process has put there in the meantime. Defaults to False.

    Raises:
        OSError: If the place cannot be written to.
    """
    path, new, old = Path(path).absolute(), work / NEW, work / OLD
    with explained(path):
        if new.is_dir():
            sync_tree(new)
        else:
            sync(new)
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

    Between its two steps the folder is missing, and the old and the new one stand in a hidden folder beside it: the new
    one, which was complete before the old one was moved, takes the place. Otherwise nothing is changed, nor is it
    while the program still runs.

    Args:
        folder (str | os.PathLike): The folder that was to be replaced.

    Returns:
        Path | None: The folder if it was brought back, else None.
    """
    folder = Path(folder).absolute()
    if folder.exists() or not folder.parent.is_dir():
        return None
    works = [path for path in _temporaries(folder.parent, folder.name) if (path / OLD).exists()]
    for work in sorted(works):
        try:
            (work / NEW if (work / NEW).exists() else work / OLD).rename(folder)
        except FileNotFoundError:  # Another process that starts has done it.
            continue
        shutil.rmtree(work, ignore_errors=True)
        return folder
    return folder if works and folder.exists() else None


def clear_leftovers(folder: str | os.PathLike, name: str | None = None) -> list[Path]:
    """Finish, or remove, what killed programs have left in a folder; what others are writing now is left alone.

    Args:
        folder (str | os.PathLike): The folder; only its own entries are looked at.
        name (str, optional): Only what is left of this name. Defaults to None: of all.

    Returns:
        list[Path]: What was removed.
    """
    folder, removed = Path(folder), []
    if not folder.is_dir():
        return removed
    with _noting:
        leftovers = _temporaries(folder, name)
    for path in leftovers:
        recover_folder(folder / _TEMPORARY.fullmatch(path.name)['name'])
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        removed.append(path)
    return removed


def _temporaries(folder: Path, name: str | None) -> list[Path]:
    """What no living process writes, of those that this module names."""
    found = ((path.absolute(), _TEMPORARY.fullmatch(path.name)) for path in folder.iterdir() if path.name[0] == '.')
    matching = ((path, match['process']) for path, match in found if match and name in (None, match['name']))
    return [path for path, process in matching if not _writes(process, path)]


def _writes(process: str, path: Path) -> bool:
    """Whether a process may still be writing. In a container, the one that was killed often had this one's number."""
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
    """Refuse a folder that cannot be written to, before hours of work end there; a missing one is made.

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
    """Make one line of what the operating system says of a place that cannot be written to.

    Also where a library says it: torch raises a RuntimeError that names neither the file nor the reason.

    Args:
        path (str | os.PathLike): What is written, for errors that do not name it.

    Raises:
        OSError: Of the same kind and number, naming the path, the reason, and the free space of its disk.
    """
    try:
        yield
    except Exception as error:
        if (line := cannot_write(error, path)) is None:
            raise
        raise line from error


def cannot_write(error: Exception, path: str | os.PathLike) -> OSError | None:
    """The error of one line for a place that cannot be written to; None for any other error.

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
    """A place cannot be written to; one line says which, why, and how much is free."""


def _why(path: str | os.PathLike) -> int | None:
    """The number of the error that a few more bytes beside a path meet, None if they can be written."""
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
