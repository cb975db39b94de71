"""Reads pickles of plain data, and refuses everything that could run code."""

import io
import os
import pickle
from typing import Any

import numpy as np


class _DType:
    """Stands in for ``numpy.dtype``, of which it takes kind and byte order."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name, self.order = name, '='

    def __setstate__(self, state: tuple) -> None:
        self.order = {'<': '<', '>': '>'}.get(state[1], '=')


def _scalar(dtype: _DType, data: bytes | str) -> bool | int | float:
    """Stands in for the constructor of numpy's scalars: a plain number from its bytes."""
    data = data.encode('latin-1') if isinstance(data, str) else data
    found = np.dtype(dtype.name)
    if found.kind not in 'biuf':
        raise pickle.UnpicklingError(f'numpy scalars may be numbers, found {dtype.name!r}')
    return np.frombuffer(data, found.newbyteorder(dtype.order), 1)[0].item()


def _encode(text: str, encoding: str) -> bytes:
    """Stands in for ``_codecs.encode``, with which old protocols write bytes."""
    return text.encode(encoding)


_ALLOWED = {
    ('numpy', 'dtype'): _DType,
    ('numpy.core.multiarray', 'scalar'): _scalar,
    ('numpy._core.multiarray', 'scalar'): _scalar,
    ('_codecs', 'encode'): _encode,
}
_ALLOWED.update({(module, kind.__name__): kind for module in ('builtins', '__builtin__') for kind in (set, frozenset)})


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f'it refers to {module}.{name}')
        return _ALLOWED[module, name]


def load_plain_pickle(path: str | os.PathLike) -> Any:
    """Read a pickle of lists, tuples, dicts, sets, texts, bytes and numbers (numpy's scalars become plain ones).

    Pickles of Python 2, such as those of RefCOCO, are read too. Nothing that a pickle names is imported or called.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds anything else, or is no pickle.
    """
    with open(path, 'rb') as file:
        data = io.BytesIO(file.read())
    try:
        return _PlainUnpickler(data, encoding='latin-1').load()  # as numpy's scalars of Python 2 need it
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise ValueError(
            f'{os.fspath(path)}: not a pickle of plain data ({error}). Only lists, tuples, dicts, sets, texts, bytes '
            'and numbers are read, as any other content can run code; write the data as JSON instead.'
        ) from error
