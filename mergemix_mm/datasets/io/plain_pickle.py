"""Reads pickles of plain data with an interpreter of its own, which never imports or calls what a pickle names."""

import codecs
import os
import re
import struct
from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any

import numpy as np

from ...utils.text import printable, quoted, shown

# Bounds on what a file can make of its bytes: a few bytes of a pickle can name a structure that fills all memory, or
# that takes years to hash.
LONGEST_NUMBER = 128  # Bytes of an integer.
LARGEST_KEY = 64  # Elements of a key.
DEEPEST = 100  # Levels of nesting.
SHARING = 50  # Values per byte of the file, where a value that is shared counts at every place.
NUMBERS = re.compile(r'[<>=|]?(b1|[iu][1248]|f[248])')
PLAIN = {type(None), bool, int, float, str, bytes}
BUILTINS = {'builtins', '__builtin__'}


class _Name:
    """A function that a pickle may name; ours is called in its place."""

    def __init__(self, call: Callable) -> None:
        self.call = call


class _DType:
    """Stands in for ``numpy.dtype``; it keeps kind and byte order only."""

    def __init__(self, name: Any, *_: Any) -> None:
        if not isinstance(name, str) or NUMBERS.fullmatch(name) is None:
            raise UnpicklingError(f'numpy scalars may be numbers, found {quoted(name)}')
        self.found = np.dtype(name)

    def set_order(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2:
            raise UnpicklingError('a number of numpy without a byte order')
        if state[1] in ('<', '>'):
            self.found = self.found.newbyteorder(state[1])


def _scalar(dtype: Any, data: Any) -> bool | int | float:
    data = data.encode('latin-1') if isinstance(data, str) else data
    if not isinstance(dtype, _DType) or not isinstance(data, bytes) or len(data) != dtype.found.itemsize:
        raise UnpicklingError('a number of numpy that does not fit its type')
    return np.frombuffer(data, dtype.found)[0].item()


def _encode(text: Any, encoding: Any) -> bytes:
    """Stands in for ``_codecs.encode``, with which old protocols write bytes."""
    if not isinstance(text, str) or encoding not in ('latin1', 'latin-1'):
        raise UnpicklingError(f'it refers to _codecs.encode, with {quoted(encoding)}')
    return text.encode('latin-1')


def _set(kind: type) -> Callable:
    def make(items: Any = ()) -> set | frozenset:
        if not isinstance(items, list | tuple):
            raise UnpicklingError('a set of something that is not a list')
        return kind(_checked_key(item) for item in items)

    return make


ALLOWED = {
    'numpy.dtype': _Name(_DType),
    'numpy.core.multiarray.scalar': _Name(_scalar),
    'numpy._core.multiarray.scalar': _Name(_scalar),
    '_codecs.encode': _Name(_encode),
}
for _module in BUILTINS:
    ALLOWED[f'{_module}.set'] = _Name(_set(set))
    ALLOWED[f'{_module}.frozenset'] = _Name(_set(frozenset))
    ALLOWED[f'{_module}.bytes'] = _Name(lambda: b'')


def _checked_key(key: Any) -> Any:
    """A key of a dict, or an element of a set, if it is cheap to hash and to compare.

    Hashing a tuple of tuples that share their elements takes 2 ** depth steps, and large integers can be chosen to have
    the same hash.
    """
    todo, left = [key], LARGEST_KEY
    while todo:
        one = todo.pop()
        if type(one) is tuple and len(one) <= left:
            left -= len(one)
            todo += one
        elif type(one) not in PLAIN or (type(one) is int and abs(one) >= 1 << 60):
            kind = 'an integer of 2 ** 60 or more' if type(one) is int else type(one).__name__.lstrip('_')
            raise UnpicklingError(f'a key may be a text, a number or a small tuple of them, found {kind}')
        left -= 1
        if left < -LARGEST_KEY:
            raise UnpicklingError(f'a key of more than {LARGEST_KEY} elements')
    return key


class _Interpreter:
    """The operations of a pickle that make plain data, over bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.stack: list = []
        self.marks: list[list] = []
        # A dict: in a list, a single large index would take all memory.
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        operations, data, size = OPERATIONS, self.data, len(self.data)
        while self.at < size:
            code = data[self.at]
            self.at += 1
            if code == STOP:
                if len(self.stack) != 1 or self.marks:
                    raise UnpicklingError('its end does not leave one value')
                return self.stack[0]
            operation = operations[code]
            if operation is None:
                raise UnpicklingError(f'the operation {quoted(chr(code))} makes more than plain data')
            operation(self)
        raise EOFError('it ends too early')

    # What the operations read.

    def take(self, count: int) -> bytes:
        found = self.data[self.at : self.at + count]
        if len(found) != count:
            raise EOFError('it ends too early')
        self.at += count
        return found

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), 'little')

    def line(self) -> bytes:
        end = self.data.find(b'\n', self.at)
        if end < 0:
            raise EOFError('it ends too early')
        found, self.at = self.data[self.at : end], end + 1
        return found

    def pop_mark(self) -> list:
        items, self.stack = self.stack, self.marks.pop()
        return items

    # The operations that take more than one line.

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def push_tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError('the stack is too short')
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        self.stack.append(items)

    def append(self, items: list) -> None:
        if type(self.stack[-1]) is not list:
            raise UnpicklingError('it appends to what is not a list')
        self.stack[-1].extend(items)

    def set_items(self, items: list) -> None:
        if type(self.stack[-1]) is not dict or len(items) % 2:
            raise UnpicklingError('it sets items of what is not a dict')
        self.stack[-1].update((_checked_key(key), value) for key, value in zip(items[::2], items[1::2]))

    def add_items(self) -> None:
        items = self.pop_mark()
        if type(self.stack[-1]) is not set:
            raise UnpicklingError('it adds to what is not a set')
        self.stack[-1].update(map(_checked_key, items))

    def integer(self, data: bytes) -> None:
        if len(data) > LONGEST_NUMBER:
            raise UnpicklingError(f'an integer of {len(data)} bytes')
        self.stack.append(int.from_bytes(data, 'little', signed=True))

    def text_integer(self) -> None:
        line = self.line()
        if line in (b'00', b'01'):
            self.stack.append(line == b'01')
            return
        if len(line) > 2 * LONGEST_NUMBER:
            raise UnpicklingError(f'an integer of {len(line)} digits')
        self.stack.append(int(line.removesuffix(b'L')))

    def text_string(self) -> None:
        line = self.line().strip()
        if len(line) < 2 or line[0] != line[-1] or line[:1] not in (b"'", b'"'):
            raise UnpicklingError('a text without quotation marks')
        self.stack.append(codecs.escape_decode(line[1:-1])[0].decode('latin-1'))

    def name(self, module: Any, name: Any) -> None:
        found = ALLOWED.get(f'{module}.{name}') if isinstance(module, str) and isinstance(name, str) else None
        if found is None:
            raise UnpicklingError(f'it refers to {shown(module, 50)}.{shown(name, 50)}')
        self.stack.append(found)

    def stack_name(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(module, name)

    def call(self) -> None:
        arguments, found = self.stack.pop(), self.stack.pop()
        if type(found) is not _Name or type(arguments) is not tuple:
            raise UnpicklingError('it calls what is not a function')
        self.stack.append(found.call(*arguments))

    def build(self) -> None:
        state = self.stack.pop()
        if type(self.stack[-1]) is not _DType:
            raise UnpicklingError('it builds something other than a number of numpy')
        self.stack[-1].set_order(state)


def _push(make: Callable[[_Interpreter], Any]) -> Callable[[_Interpreter], None]:
    return lambda self: self.stack.append(make(self))


def _text(count: int) -> Callable[[_Interpreter], None]:
    return _push(lambda self: str(self.take(self.number(count)), 'utf-8', 'surrogatepass'))


# By the characters of https://github.com/python/cpython/blob/main/Lib/pickletools.py.
_BY_CHARACTER = {
    b'N': _push(lambda self: None),
    b'\x88': _push(lambda self: True),
    b'\x89': _push(lambda self: False),
    b'I': _Interpreter.text_integer,
    b'L': _Interpreter.text_integer,
    b'J': _push(lambda self: struct.unpack('<i', self.take(4))[0]),
    b'K': _push(lambda self: self.take(1)[0]),
    b'M': _push(lambda self: self.number(2)),
    b'\x8a': lambda self: self.integer(self.take(self.number(1))),
    b'\x8b': lambda self: self.integer(self.take(self.number(4))),
    b'F': _push(lambda self: float(self.line())),
    b'G': _push(lambda self: struct.unpack('>d', self.take(8))[0]),
    # Texts of Python 2 are bytes, as numbers of numpy need them; those of RefCOCO are ASCII.
    b'S': _Interpreter.text_string,
    b'T': _push(lambda self: self.take(self.number(4)).decode('latin-1')),
    b'U': _push(lambda self: self.take(self.number(1)).decode('latin-1')),
    b'V': _push(lambda self: str(self.line(), 'raw-unicode-escape')),
    b'X': _text(4),
    b'\x8c': _text(1),
    b'\x8d': _text(8),
    b'B': _push(lambda self: self.take(self.number(4))),
    b'C': _push(lambda self: self.take(self.number(1))),
    b'\x8e': _push(lambda self: self.take(self.number(8))),
    b'(': _Interpreter.mark,
    b'0': _Interpreter.pop,
    b'1': lambda self: self.pop_mark() and None,
    b'2': _push(lambda self: self.stack[-1]),
    b')': _push(lambda self: ()),
    b'\x85': lambda self: self.push_tuple(1),
    b'\x86': lambda self: self.push_tuple(2),
    b'\x87': lambda self: self.push_tuple(3),
    b']': _push(lambda self: []),
    b'}': _push(lambda self: {}),
    b'\x8f': _push(lambda self: set()),
    b'a': lambda self: self.append([self.stack.pop()]),
    b'e': lambda self: self.append(self.pop_mark()),
    b'u': lambda self: self.set_items(self.pop_mark()),
    b'\x90': _Interpreter.add_items,
    # A longer number is not a place in the memo, and converting a very long one would take long.
    b'p': lambda self: self.put(int(self.line()[:20])),
    b'q': lambda self: self.put(self.number(1)),
    b'r': lambda self: self.put(self.number(4)),
    b'\x94': lambda self: self.put(len(self.memo)),
    b'g': _push(lambda self: self.memo[int(self.line()[:20])]),
    b'h': _push(lambda self: self.memo[self.number(1)]),
    b'j': _push(lambda self: self.memo[self.number(4)]),
    b'c': lambda self: self.name(self.line().decode('utf-8'), self.line().decode('utf-8')),
    b'\x93': _Interpreter.stack_name,
    b'R': _Interpreter.call,
    b'b': _Interpreter.build,
    b'\x80': lambda self: self.take(1) and None,
    b'\x95': lambda self: self.take(8) and None,
}


def _from_mark(make: Callable[[list], Any]) -> Callable[[_Interpreter], None]:
    def operation(self: _Interpreter) -> None:
        items = self.pop_mark()
        self.stack.append(make(items))

    return operation


def _new_dict(items: list) -> dict:
    if len(items) % 2:
        raise UnpicklingError('a dict with a key without a value')
    return {_checked_key(key): value for key, value in zip(items[::2], items[1::2])}


def _set_item(self: _Interpreter) -> None:
    value, key = self.stack.pop(), self.stack.pop()
    self.set_items([key, value])


_BY_CHARACTER |= {
    b't': _from_mark(tuple),
    b'l': _from_mark(list),
    b'd': _from_mark(_new_dict),
    b'\x91': _from_mark(_set(frozenset)),
    b's': _set_item,
}
# All other operations import, call or build something, or need data from outside.
STOP = ord('.')
OPERATIONS = [_BY_CHARACTER.get(bytes([code])) for code in range(256)]


def _check_content(content: Any, size: int) -> None:
    """Refuse functions as data, and structures that would be endless, too deep or huge if they were written out."""
    sizes: dict[int, tuple[int, int]] = {}  # Of each container that is done: the number of values, and of levels.
    limit = SHARING * size
    open_ones: set[int] = set()
    todo = [(content, False)]
    while todo:
        value, is_done = todo.pop()
        if type(value) in PLAIN:
            continue
        if type(value) not in (list, tuple, dict, set, frozenset):
            raise UnpicklingError('it holds a function or a type as data')
        key = id(value)
        if key in sizes:
            continue
        items = [*value, *value.values()] if type(value) is dict else value
        if not is_done:
            if key in open_ones:
                raise UnpicklingError('a list or dict that holds itself')
            open_ones.add(key)
            if len(open_ones) > DEEPEST:
                raise UnpicklingError(f'it is nested more than {DEEPEST} deep')
            todo.append((value, True))
            todo += [(item, False) for item in items if type(item) not in PLAIN and id(item) not in sizes]
            continue
        open_ones.discard(key)
        inner = [sizes[id(item)] for item in items if type(item) not in PLAIN]
        count = len(items) + sum(one for one, _ in inner)
        depth = 1 + max((level for _, level in inner), default=0)
        if count > limit or depth > DEEPEST:
            what = f'more than {limit} values' if count > limit else f'a nesting of more than {DEEPEST} levels'
            raise UnpicklingError(f'written out it has {what}')
        sizes[key] = count, depth


def load_plain_pickle(path: str | os.PathLike) -> Any:
    """Read a pickle of lists, tuples, dicts, sets, texts, bytes and numbers (numpy's scalars become plain ones).

    Pickles of Python 2, such as those of RefCOCO, are read too. Nothing that a pickle names is imported or called. Time
    and memory grow in proportion to the size of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds anything else, or is not a pickle.
    """
    with open(path, 'rb') as file:
        data = file.read()
    try:
        content = _Interpreter(data).run()
        _check_content(content, len(data))
    except (UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        raise ValueError(
            f'{printable(os.fspath(path))}: not a pickle of plain data ({shown(error, 200)}). Only lists, tuples, '
            'dicts, sets, texts, bytes and numbers are read, as any other content can run code; write the data as JSON '
            'instead.'
        ) from error
    return content
