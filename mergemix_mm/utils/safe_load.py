"""Reads files of torch.save without running code in them: tensors, plain values, and MMEngine's logs.

A pickle names functions, and reading it calls them. Here only a fixed list of names is known, and each stands for a
harmless stand-in. :func:`plain` is the other direction: it writes logs in a form that any restricted reader knows.
"""

import io
import os
import pickle
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from types import FrameType, FunctionType
from typing import IO, Any

import numpy as np
import torch
import yaml
from mmengine.fileio import PickleHandler, YamlHandler
from mmengine.fileio import load as mmengine_load
from mmengine.logging import HistoryBuffer
from torch import Tensor, serialization

from .text import printable, shown

# The methods that a pickled HistoryBuffer refers to; a new buffer has them anyway.
LOG_METHODS = ('min', 'max', 'current', 'mean')
NUMERIC = 'biufcSU'  # Kinds of dtypes with plain elements: bool, numbers and texts.
BUILTINS = ('builtins', '__builtin__')
HISTORY, ARRAY = '__history__', '__ndarray__'
FLAG = '--trust-checkpoint'
REFERS = 'it refers to '
FORCE, FORCE_NOT = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'


class CheckpointError(ValueError):
    """A file cannot be read as a checkpoint."""


class UntrustedCheckpointError(CheckpointError):
    """A file holds more than weights, plain values and logs. Nothing in it was executed."""


class RefusedObjectError(UnpicklingError):
    """A stand-in refuses to make an object. Torch keeps only the text of the error, so that carries the reason."""

    def __init__(self, what: str) -> None:
        super().__init__(REFERS + what)


class _Dtype:
    """Stands for ``numpy.dtype``, whose own unpickling can change a type that all arrays share."""

    def __init__(self, name: str, *_: Any) -> None:
        self.found = np.dtype(name if type(name) is str else '')
        if self.found.kind not in NUMERIC:
            raise RefusedObjectError(f'an array of dtype {name!r}, whose elements are not numbers')

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ('<', '>'):
            self.found = self.found.newbyteorder(state[1])


class _Array(np.ndarray):
    """Stands for ``numpy.ndarray``: it is made empty, and its elements come from as many bytes as its shape needs."""

    def __new__(cls, *_: Any) -> '_Array':
        return super().__new__(cls, 0, 'b')

    def __setstate__(self, state: tuple) -> None:
        version, shape, dtype, order, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
            raise RefusedObjectError('an array whose elements are not numbers')
        super().__setstate__((version, shape, dtype.found, order, data))


class _Logs:
    """Stands for HistoryBuffer, whose own unpickling writes to the class that every logger shares."""

    def __setstate__(self, state: dict) -> None:
        self.state = state


def _attribute(owner: type, name: str) -> str:
    """Stands for ``getattr``, which old checkpoints need only for the four methods of HistoryBuffer."""
    if owner is not _Logs or name not in LOG_METHODS:
        raise RefusedObjectError(f'the attribute {name!r} of something')
    return name


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _scalar(dtype: _Dtype, data: bytes) -> np.generic:
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
        raise RefusedObjectError('a numpy scalar that is not a number')
    return np.frombuffer(data, dtype.found, 1)[0]


def _encode(text: str, encoding: str) -> bytes:
    """Stands for ``_codecs.encode``, with which old protocols write bytes."""
    if encoding not in ('latin1', 'latin-1'):
        raise RefusedObjectError(f'_codecs.encode, with {encoding!r}')
    return text.encode('latin-1')


def _config_dict(content: dict | None = None, *_: Any) -> dict:
    return dict(content or {})


STAND_INS: list[tuple[Any, str]] = [
    (_Logs, 'mmengine.logging.history_buffer.HistoryBuffer'),
    (_attribute, 'builtins.getattr'),
    (_config_dict, 'mmengine.config.config.ConfigDict'),
    (_Array, 'numpy.ndarray'),
    (_Dtype, 'numpy.dtype'),
    *((_reconstruct, f'numpy.{core}.multiarray._reconstruct') for core in ('core', '_core')),
    *((_scalar, f'numpy.{core}.multiarray.scalar') for core in ('core', '_core')),
]

# The names that pickles of annotations may hold.
PICKLED = {
    **{name: found for found, name in STAND_INS if name != 'builtins.getattr'},
    **{f'{module}.{kind.__name__}': kind for module in BUILTINS for kind in (set, frozenset, complex)},
    **{f'{module}.bytes': lambda: b'' for module in BUILTINS},
    '_codecs.encode': _encode,
    'collections.OrderedDict': OrderedDict,
}


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Make torch's restricted unpickler use the stand-ins, also where other code allowed it the real objects."""
    before = serialization.get_safe_globals()
    names = {name for _, name in STAND_INS}
    kept = [one for one in before if _global_name(one) not in names]
    serialization.clear_safe_globals()
    serialization.add_safe_globals([*kept, *STAND_INS])
    try:
        yield
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(before)


def _global_name(one: Any) -> str:
    return one[1] if isinstance(one, tuple) else f'{one.__module__}.{one.__qualname__}'


def safe_load(
    file: str | os.PathLike | IO[bytes],
    map_location: Any = None,
    trust: bool = False,
    flag: str = FLAG,
    mmap: bool = False,
) -> Any:
    """Read a file of torch.save: tensors, plain values, numbers and arrays of numpy, and MMEngine's logs.

    Args:
        file (str | PathLike | IOBase): The path, or a file object.
        map_location (Any): As in torch.load. Defaults to None.
        trust (bool): Whether to read files with other objects too, which can run any code. Defaults to False.
        flag (str): The flag by which a user sets `trust`, for the error. Defaults to ``'--trust-checkpoint'``.
        mmap (bool): Whether tensors stay in the file, as in torch.load. Defaults to False.

    Returns:
        Any: The content, with a `HistoryBuffer` for every log.

    Raises:
        UntrustedCheckpointError: If the file refers to any other object.
        CheckpointError: If the file is damaged.
    """
    name = os.fspath(file) if isinstance(file, str | os.PathLike) else getattr(file, 'name', 'the checkpoint')
    try:
        with _stand_ins():
            content = torch.load(file, map_location=map_location, weights_only=True, mmap=mmap)
        return restored(content)
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Exception as error:  # Hostile content can raise whatever Python has.
        if not trust:
            raise _refusal(name, error, flag) from None
    if hasattr(file, 'seek'):
        file.seek(0)
    try:
        with _environment({FORCE: None}):
            return restored(torch.load(file, map_location=map_location, weights_only=False))
    except (UnpicklingError, EOFError, RuntimeError) as error:
        raise _refusal(name, error, flag) from None


@contextmanager
def guarded_mmengine(trust: bool = False, flag: str = FLAG) -> Iterator[None]:
    """Make MMEngine, and all other callers of torch.load in this process and its workers, read with :func:`safe_load`.

    MMEngine itself allows the real ``getattr``, and falls back to ``weights_only=False`` for files that it cannot read
    safely. Annotation files in pickle and YAML, which can name any function as well, are read as plain data.
    For programs, not for libraries: functions of MMEngine are replaced for the whole process until the block ends.

    Args:
        trust (bool): Whether to read checkpoints with other objects too, which can run any code. Defaults to False.
        flag (str): The flag by which a user sets `trust`, for the error. Defaults to ``'--trust-checkpoint'``.
    """
    from mmengine.fileio.handlers import file_handlers
    from mmengine.runner import checkpoint

    def load(file, map_location=None, weights_only=None):
        content = safe_load(file, map_location, trust, flag)
        if not isinstance(content, dict):
            name = printable(file if isinstance(file, str | os.PathLike) else getattr(file, 'name', 'the checkpoint'))
            raise CheckpointError(f'{name} holds no weights by name, but: {type(content).__name__}')
        return content

    def load_url(*args, **kwargs):  # It calls torch.load, not `_safe_torch_load`.
        try:
            with _stand_ins():
                return restored(download(*args, **kwargs))
        except (UnpicklingError, RecursionError) as error:
            raise _refusal(str(args[0] if args else kwargs.get('url')), error, flag) from None

    before, download = checkpoint._safe_torch_load, checkpoint.load_url
    handlers = dict(file_handlers)
    checkpoint._safe_torch_load, checkpoint.load_url = load, load_url
    if not trust:
        pickles, yamls = _PlainPickleHandler(flag), _PlainYamlHandler(flag)
        file_handlers.update(pkl=pickles, pickle=pickles, yaml=yamls, yml=yamls)
    try:
        with _environment({FORCE: None if trust else '1', FORCE_NOT: '1' if trust else None}):
            yield
    finally:
        checkpoint._safe_torch_load, checkpoint.load_url = before, download
        file_handlers.update(handlers)


class _PlainUnpickler(pickle.Unpickler):
    """Makes plain data and arrays. Stand-ins that are functions are wrapped: a pickle could set their attributes."""

    def find_class(self, module: str, name: str) -> Any:
        found = PICKLED.get(f'{module}.{name}')
        if found is None:
            raise RefusedObjectError(f'{module}.{name}')
        return _Function(found) if isinstance(found, FunctionType) else found


class _Function:
    __slots__ = ('call',)
    call: Callable

    def __init__(self, call: Callable) -> None:
        object.__setattr__(self, 'call', call)

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise RefusedObjectError('an attribute of a function')


class _PlainPickleHandler(PickleHandler):
    """Reads the pickles that MMEngine's ``load`` is given, without running code in them."""

    def __init__(self, flag: str) -> None:
        self.flag = flag

    def load_from_fileobj(self, file: io.IOBase, **kwargs: Any) -> Any:
        try:
            return restored(_PlainUnpickler(file, **kwargs).load())
        except Exception as error:  # Hostile content can raise whatever Python has.
            raise _refusal(_file_in_loading(), error, self.flag, 'a pickle') from None


class _PlainYamlHandler(YamlHandler):
    """Reads YAML without the tags that name objects of Python."""

    str_like = False  # MMEngine then passes bytes, so that files that are not UTF-8 raise their error here.

    def __init__(self, flag: str) -> None:
        self.flag = flag

    def load_from_fileobj(self, file: io.IOBase, **kwargs: Any) -> Any:
        try:
            return yaml.load(file, **{**kwargs, 'Loader': getattr(yaml, 'CSafeLoader', yaml.SafeLoader)})
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            problem = str(getattr(error, 'problem', None) or error)
            tag = re.search("tag '(.*python.*)'", problem)
            reason = RefusedObjectError(tag[1].rpartition(':python/')[2]) if tag else error
            raise _refusal(_file_in_loading(), reason, self.flag, 'YAML') from None


def _file_in_loading() -> str:
    """The file that MMEngine's ``load`` was given. It passes only the content to handlers, so its frame is searched."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is mmengine_load.__code__:
            return str(frame.f_locals.get('file'))
        frame = frame.f_back
    return 'the file'


@contextmanager
def _environment(values: dict[str, str | None]) -> Iterator[None]:
    """Set variables of the environment, or remove those that are None, until the block ends."""

    def put(values: dict[str, str | None]) -> None:
        for name, value in values.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    before = {name: os.environ.get(name) for name in values}
    put(values)
    try:
        yield
    finally:
        put(before)


def _refusal(name: str, error: Exception, flag: str, kind: str = 'a checkpoint of torch.save') -> CheckpointError:
    """The one-line error for what torch's unpickler, or a stand-in, raised."""
    text = str(error).split('WeightsUnpickler error:')[-1].split('Please file an issue')[0].strip()
    line = ' '.join(text.splitlines()[:1])
    found = re.search(r'GLOBAL (\S+)', text)
    name = printable(name)
    if found or line.startswith((REFERS, 'Can only', 'Trying to call')):
        content = 'weights and logs' if kind.endswith('torch.save') else 'plain data'
        what = shown(found[1] if found else line.removeprefix(REFERS), 100)
        return UntrustedCheckpointError(
            f'{name} holds more than {content}, and is not loaded: {REFERS}{what}. '
            f'Nothing in it was executed. If you trust where it comes from, {flag} reads it'
        )
    return CheckpointError(
        f'{name} cannot be loaded: it is damaged, or not {kind} ({type(error).__name__}: {shown(line, 200)})'
    )


def load_checkpoint(path: Path, trust: bool = False, flag: str = FLAG) -> Any:
    """Read a checkpoint of MMEngine, or a state dict, to the CPU; see :func:`safe_load`."""
    return safe_load(path, 'cpu', trust, flag)


def plain(value: Any, unknown: list[str], key: str = '') -> Any:
    """Turn the content of a checkpoint of MMEngine into tensors and plain values; :func:`restored` is the inverse.

    Logs (`HistoryBuffer`) and arrays become tensors in a dict, numbers of numpy become numbers, mappings become dicts,
    and paths become texts. Values that need no change are returned as they are.

    Args:
        value (Any): A checkpoint, or a part of it.
        unknown (list[str]): Key and type of each value that has no plain form are appended; the value stays as it is.
        key (str): The key of the value. Defaults to ``''``: the whole checkpoint.
    """
    if isinstance(value, np.generic):
        return plain_scalar(value, unknown, key)
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | Tensor | torch.dtype):
        return _base(value)
    if isinstance(value, HistoryBuffer):
        logs, counts = (_tensor(array, unknown, key) for array in value.data)
        return {HISTORY: dict(log_history=logs, count_history=counts, max_length=value.max_length)}
    if isinstance(value, np.ndarray):
        return {ARRAY: _tensor(value, unknown, key)}
    if isinstance(value, dict):
        return _plain_dict(value, unknown, key)
    if isinstance(value, torch.Size | torch.device):
        return value
    if isinstance(value, list | tuple | set):
        items = [plain(item, unknown, f'{key}[{i}]') for i, item in enumerate(value)]
        base = next(kind for kind in (list, tuple, set) if isinstance(value, kind))
        same = type(value) is base and all(new is old for new, old in zip(items, value))
        return value if same else base(items)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    unknown.append(f'{key} ({type(value).__module__}.{type(value).__qualname__})')
    return value


def plain_scalar(value: np.generic, unknown: list[str], key: str) -> Any:
    """The Python number of a number of numpy."""
    if value.dtype.kind in NUMERIC:
        found = value.item()
        return float(found) if isinstance(found, np.floating) else found
    unknown.append(f'{key} (numpy.{type(value).__name__})')
    return value


def _base(value: Any) -> Any:
    """The plain number or text of a subclass, such as a member of an IntEnum."""
    kinds: tuple[Any, ...] = (int, float, str, bytes)
    for kind in kinds:
        if isinstance(value, kind) and type(value) not in (kind, bool):
            return kind(value) if kind is not str else str.__str__(value)
    return value


def _plain_dict(value: dict, unknown: list[str], key: str) -> dict:
    # Items, since indexing a ConfigDict converts values. Keys can be numbers of numpy as well.
    items = {
        _base(plain_scalar(name, unknown, key) if isinstance(name, np.generic) else name): plain(
            item, unknown, f'{key}.{name}' if key else str(name)
        )
        for name, item in value.items()
    }
    if type(value).__module__ not in ('builtins', 'collections') or type(value).__name__ not in ('dict', 'OrderedDict'):
        return items
    if list(items) == list(value) and all(items[name] is value[name] for name in items):
        return value
    if type(value) is dict:
        return items
    result = value.copy()
    result.__dict__.update(vars(value))  # The versions of modules, `_metadata`.
    result.update(items)
    return result


def _tensor(array: np.ndarray, unknown: list[str], key: str) -> Tensor | np.ndarray:
    try:
        return torch.from_numpy(np.array(array, array.dtype.newbyteorder('=')))
    except TypeError:
        unknown.append(f'{key} (an array of {array.dtype})')
        return array


def restored(value: Any) -> Any:
    """Rebuild logs and arrays, also of old checkpoints, from what :func:`plain` or the restricted unpickler made.

    Containers are changed in place.

    Raises:
        UnpicklingError: If a log holds anything but two rows of numbers.
    """
    return _restored(value, {})


def _restored(value: Any, seen: dict[int, Any]) -> Any:
    if isinstance(value, _Logs | _Array | _Dtype):
        return _from_stand_in(value)
    if isinstance(value, type | FunctionType):
        raise RefusedObjectError('a function or a class')
    if not isinstance(value, dict | list | tuple):
        return value
    if id(value) in seen:
        return seen[id(value)][1]
    seen[id(value)] = value, value  # Also keeps the value alive: the id of a freed object is used again.
    if isinstance(value, dict):
        for name, item in list(value.items()):
            new = _restored(item, seen)
            if new is not item:
                value[name] = new
        if len(value) == 1:
            result = _from_marker(value)
            seen[id(value)] = value, result
            return result
    elif isinstance(value, list):
        value[:] = [_restored(item, seen) for item in value]
    elif type(value) is tuple:
        items = tuple(_restored(item, seen) for item in value)
        if any(new is not old for new, old in zip(items, value)):
            seen[id(value)] = value, items
            return items
    return value


def _from_stand_in(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.view(np.ndarray)
    if isinstance(value, _Dtype):
        return value.found
    state = getattr(value, 'state', None)
    state = state if isinstance(state, dict) else {}
    return _buffer(*(state.get(name) for name in ('_log_history', '_count_history', 'max_length')))


def _from_marker(value: dict) -> Any:
    if isinstance(found := value.get(HISTORY), dict):
        return _buffer(*(found.get(name) for name in ('log_history', 'count_history', 'max_length')))
    if ARRAY in value:
        found = value[ARRAY]
        return found.cpu().numpy() if isinstance(found, Tensor) else found
    return value


def _buffer(logs: Any, counts: Any, max_length: Any) -> HistoryBuffer:
    # With `map_location`, the rows were moved to an accelerator together with the weights.
    rows = [row.cpu().numpy() if isinstance(row, Tensor) else row for row in (logs, counts)]
    numbers = all(isinstance(row, np.ndarray) and row.ndim == 1 and row.dtype.kind in 'biuf' for row in rows)
    if not numbers or len(rows[0]) != len(rows[1]) or type(max_length) is not int or max_length < 1:
        raise RefusedObjectError('a log that is not two rows of numbers')
    buffer = HistoryBuffer(max_length=max_length)
    buffer._log_history, buffer._count_history = (row.view(np.ndarray) for row in rows)
    return buffer
