"""Records of a JSON array or JSON-lines file, indexed by byte offsets and parsed one at a time."""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from ...utils.text import DataError, RecordError, quoted

# Bytes that are read at once.
CHUNK = 1 << 20
# No data set of this field nests deeper, and other programs, like Python's own deepcopy, fail on deeper values.
MAX_DEPTH = 100
# An error this close to the end of what was read so far, or inside a string, may only mean that more has to be read.
TAIL = 16
SPACE = re.compile(r'[ \t\r\n]*')
DECODER = json.JSONDecoder()
STRUCTURE = re.compile(r'[{}\[\]"]')
STRING_END = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
# Only text with these bytes can hold half a character or an infinite number; looking for them first costs less than
# checking every value.
SURROGATE, LARGE_EXPONENT = re.compile(rb'\\u[dD][89a-fA-F]'), re.compile(rb'[eE]\+?[0-9]{3}')
# Other kinds of files by their first bytes, each with what it is and what to do.
OTHER_FILES = {
    rb'PAR1': 'a Parquet file; let its name end in .parquet',
    rb'ARROW1|\xff\xff\xff\xff': 'an Arrow file; give the folder that save_to_disk wrote',
    rb'\x1f\x8b': 'compressed with gzip; unpack it (gunzip)',
    rb'BZh[1-9]': 'compressed with bzip2; unpack it (bunzip2)',
    rb'\xfd7zXZ': 'compressed with xz; unpack it (unxz)',
    rb'\x28\xb5\x2f\xfd': 'compressed with zstd; unpack it (unzstd)',
    rb'PK[\x03\x05\x07]': 'a zip archive; unpack it',
    rb'7z\xbc\xaf|Rar!': 'an archive; unpack it',
    rb'version https://git-lfs': 'a Git LFS pointer instead of the file; fetch that with git lfs pull',
    rb'\s*<': 'HTML or XML, such as a failed download leaves; fetch the file again',
    rb'\xff\xfe\x00\x00|\x00\x00\xfe\xff|[\[{\s]\x00\x00\x00|\x00\x00\x00[\[{\s]': 'in UTF-32; save it as UTF-8',
    rb'\xff\xfe|\xfe\xff|[\[{\s]\x00|\x00[\[{\s]': 'in UTF-16; save it as UTF-8',
    rb'\x89PNG|\xff\xd8\xff|GIF8|RIFF': 'an image',
    rb'%PDF': 'a PDF',
    rb'SQLite format 3': 'an SQLite database',
    rb'\x80[\x02-\x05]': 'a Python pickle',
    rb'\x89HDF': 'an HDF5 file',
}
Element = TypeVar('Element')


def check_kind(path: str, start: bytes) -> None:
    """Refuse a file that is not JSON text, by its first bytes.

    Args:
        path (str): Its name.
        start (bytes): What it begins with.

    Raises:
        ValueError: If it is another kind of file; names the file and the kind.
    """
    if start and not start.strip(b'\0'):
        raise DataError(f'{path}: its first bytes are all 0, not JSON; restore the file.')
    for pattern, kind in OTHER_FILES.items():
        if re.match(pattern, start):
            raise DataError(f'{path}: the file is {kind}. JSON records are expected here.')


def read_json(path: str | Path) -> Any:
    """Read a JSON file that fits into memory.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not valid JSON in UTF-8, see :func:`parse_json`; names the file and, for malformed JSON,
            the line.
    """
    path = os.fspath(path)
    with open(path, 'rb') as file:
        content = file.read()
    check_kind(path, content[:64])
    content = content.removeprefix(b'\xef\xbb\xbf')
    if not content.strip():
        raise DataError(f'{path}: the file is empty, but should hold JSON.')
    try:
        return parse_json(content)
    except json.JSONDecodeError as error:
        raise DataError(f'{path}:{error.lineno}: malformed JSON at column {error.colno}: {error.msg}.') from None
    except ValueError as error:
        raise DataError(f'{path}: {error}.') from None


def parse_json(content: bytes) -> Any:
    """Parse JSON strictly: refuse what Python's own parser accepts, or fails on without a clear error.

    Raises:
        ValueError: If the content is not UTF-8, a key comes twice in an object, a number is not finite or has more than
            4300 digits, a text holds half a character (a lone surrogate), or values are nested more than 100 deep.
        json.JSONDecodeError: If the content is malformed; a ValueError too.
    """
    try:
        text = content.decode('utf-8')
    except UnicodeDecodeError as error:
        raise ValueError(f'the record is not UTF-8 ({error})') from error
    parse_float = _finite if LARGE_EXPONENT.search(content) else None  # None: Python's own, which is faster.
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=parse_float)
    except RecursionError as error:
        raise ValueError(f'values are nested more than {MAX_DEPTH} deep') from error
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        if 'digits' not in str(error):
            raise
        raise ValueError('a whole number has too many digits to be read') from error
    if content.count(b'[') + content.count(b'{') > MAX_DEPTH and _deeper(value, MAX_DEPTH):
        raise ValueError(f'values are nested more than {MAX_DEPTH} deep')
    if SURROGATE.search(content):
        try:
            json.dumps(value, ensure_ascii=False).encode('utf-8')
        except UnicodeEncodeError as error:
            code = ord(error.object[error.start])
            raise ValueError(f'a text holds half a character, the lone surrogate \\u{code:04x}') from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict:
    # Of two equal keys, Python keeps the last one silently.
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise ValueError(f'the key {quoted(twice)} comes twice in one object')
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f'{name} is not a number that JSON knows; write null or a finite number')


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f'the number {quoted(text)} is too large')
    return value


def _deeper(value: Any, depth: int) -> bool:
    """Whether lists and objects are nested more than ``depth`` deep; a loop, as recursion would fail on deep values."""
    level = [value]
    for _ in range(depth + 1):
        level = [
            one
            for part in level
            for one in (part.values() if isinstance(part, dict) else part)
            if isinstance(one, (dict, list))
        ]
        if not level:
            return False
    return True


class JsonRecords:
    """A sequence of JSON objects that stay in their file.

    One pass over the file checks its syntax and keeps 25 bytes per record: its first and last byte, its line, and a
    flag. ``records[i]`` then seeks, reads and parses one record. A record that is well-formed but unusable (because of
    its numbers, nesting or characters, see :func:`parse_json`) raises its error when it is read. The layout of lines
    does not matter: an array may be pretty-printed or one single line. Every process opens the file for itself, and
    objects can be pickled.

    Args:
        path (str | Path): A file that holds an array of objects (``.json``), or one object after the other
            (``.jsonl``). The first character tells which of the two it is.
        flag (Callable[[dict], bool], optional): Computed once per record, in their order; see ``flags``. It must not
            depend on text outside ASCII, which is not decoded yet when it is called. For a record that cannot be parsed
            it gets an empty object. Defaults to None: all flags are False.
        key (str, optional): The array is the value of this key of a top-level object, as in the files of VQAv2.
            Defaults to None.

    Attributes:
        flags (np.ndarray): [N] bool, ``flag`` of each record.
        lines (np.ndarray): [N] int64, the line on which each record begins, from 1.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is empty or not valid JSON; names file, line and column, or the kind of file that it is.
    """

    other_keys: Counter[str]  # Set by `open_records`.

    def __init__(self, path: str | Path, flag: Callable[[dict], bool] | None = None, key: str | None = None) -> None:
        self.path = os.fspath(path)
        columns: tuple[list, ...] = ([], [], [], [])
        index = [np.empty((0,), dtype) for dtype in (np.int64, np.int64, np.int64, bool)]

        def flush() -> None:
            for place, column in enumerate(columns):
                index[place] = np.concatenate([index[place], np.array(column, index[place].dtype)])
                column.clear()

        with open(self.path, 'rb') as file:
            for start, end, line, record in _Scanner(file, self.path).records(key):
                for column, value in zip(columns, (start, end, line, flag is not None and bool(flag(record)))):
                    column.append(value)
                if len(columns[0]) == CHUNK // 16:
                    flush()
        flush()
        self.starts, self.ends, self.lines, self.flags = index
        self._file: BinaryIO | None = None
        self._process: int | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict:
        """Read and parse one record.

        Raises:
            IndexError: If ``index`` is not in [-N, N).
            RecordError: If it cannot be used; see :func:`parse_json`.
        """
        start, end = int(self.starts[index]), int(self.ends[index])
        # A forked worker would share the position inside the open file with its parent.
        if self._file is None or self._process != os.getpid():
            self._file, self._process = open(self.path, 'rb'), os.getpid()  # noqa: SIM115
        self._file.seek(start)
        try:
            return parse_json(self._file.read(end - start))
        except json.JSONDecodeError as error:
            text = f'{error.msg} at character {error.pos} of the record; the file may have changed since it was opened'
            raise RecordError(f'{self.source(index)}: {text}') from error
        except ValueError as error:
            raise RecordError(f'{self.source(index)}: {error}') from error

    @property
    def lengths(self) -> np.ndarray:
        """The bytes of each record in the file, [N] int64."""
        return self.ends - self.starts

    def source(self, index: int) -> str:
        """``'path:line'``; records that share their line with a neighbour also give their number, from 0."""
        index = range(len(self))[index]
        near = self.lines[max(index - 1, 0) : index + 2]
        number = f' (record {index})' if (near == self.lines[index]).sum() > 1 else ''
        return f'{self.path}:{self.lines[index]}{number}'

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_file': None, '_process': None}


class _NumberError(ValueError):
    """A number is valid JSON, but Python does not read it."""


class _Scanner:
    """Walks through a JSON file chunk by chunk.

    The bytes are read as Latin-1, so that one character is one byte: JSON's own characters are all ASCII.
    """

    def __init__(self, file, path: str) -> None:
        self.file, self.path = file, path
        self.text, self.place = '', 0
        self.dropped = 0  # Bytes of the file before `text`.
        # A place in `text`, its line, and the first byte of that line: errors name line and column.
        self.counted, self.line, self.line_start = 0, 1, 0

    def records(self, key: str | None) -> Iterator[tuple[int, int, int, dict]]:
        """Yields (first byte, byte after the last, line, object)."""
        start = self.file.read(64)
        check_kind(self.path, start)
        self.dropped = self.line_start = 3 if start.startswith(b'\xef\xbb\xbf') else 0
        self.file.seek(self.dropped)
        if key is not None:
            self.enter(key)
        elif self.next_character() == '':
            raise DataError(f'{self.path}: the file is empty, but should hold JSON records.')
        if self.next_character() == '[':
            yield from self.array(self.record)
            if key is None and self.next_character():
                self.fail(f'found {self.next_text()} after the array')
        elif key is not None:
            self.fail(f'the value of {key!r} must be an array')
        else:
            while self.next_character():
                yield self.record()

    def enter(self, key: str) -> None:
        """Move to the value of a key of the top-level object."""
        self.expect('{')
        found: list[Any] = []
        while True:
            if self.next_character() != '"':
                self.fail(f'no key {key!r} in the top-level object, only {quoted(found, 200)}')
            found.append(self.value())
            self.expect(':')
            if found[-1] == key:
                self.next_character()
                return
            self.pass_over()
            if self.next_character() == ',':
                self.place += 1

    def pass_over(self) -> None:
        """Move past the current value; past an array by its elements, as it may be as large as the file."""
        if self.next_character() != '[':
            self.value_or_skip()
            return
        for _ in self.array(self.value_or_skip):
            pass

    def array(self, element: Callable[[], Element]) -> Iterator[Element]:
        self.expect('[')
        if self.next_character() != ']':
            yield element()
        while self.next_character() != ']':
            self.expect(',')
            yield element()
        self.place += 1

    def record(self) -> tuple[int, int, int, dict]:
        if self.next_character() != '{':
            self.fail(f'a record must be an object {{...}}, found {self.next_text()}')
        self.count_lines()
        start, line = self.dropped + self.place, self.line
        value = self.value_or_skip()
        return start, self.dropped + self.place, line, value

    def next_character(self) -> str:
        """Skip white space; the next character, or '' at the end of the file."""
        while True:
            space = SPACE.match(self.text, self.place)
            assert space is not None  # It matches no space as well.
            self.place = space.end()
            if self.place < len(self.text):
                return self.text[self.place]
            if not self.read():
                return ''

    def expect(self, character: str) -> None:
        found = self.next_character()
        if found != character:
            self.fail(f'expected {character!r}, found {found!r}' if found else f'expected {character!r}, but it ends')
        self.place += 1

    def value(self):
        """Parse the value at the current place, reading on until it is complete."""
        self.next_character()
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.place)
            except json.JSONDecodeError as error:
                # `error.pos` of an unterminated string is its beginning.
                incomplete = error.pos + TAIL >= len(self.text) or error.msg.startswith('Unterminated')
                if incomplete and self.read():
                    continue
                self.place = error.pos
                self.fail(error.msg)
            except ValueError as error:  # Python reads no more than 4300 digits.
                raise _NumberError('a whole number has too many digits to be read') from error
            else:
                # Digits at the very end of a chunk may go on in the next one.
                if end == len(self.text) and isinstance(value, (int, float)) and self.read():
                    continue
                self.place = end
                return value

    def value_or_skip(self) -> Any:
        """The current value; {} for one that Python cannot hold, whose end is found by its brackets."""
        first = self.next_character()
        place = self.dropped + self.place
        try:
            return self.value()
        except RecursionError:
            reason = f'values are nested more than {MAX_DEPTH} deep'
        except _NumberError as error:
            reason = str(error)
        self.place = place - self.dropped
        if first not in ('{', '['):
            self.fail(reason)
        self.skip()
        return {}

    def skip(self) -> None:
        """Move past the current object or array without parsing it."""
        depth = 0
        while True:
            found = STRUCTURE.search(self.text, self.place)
            self.place = len(self.text) if found is None else found.end()
            if found is None:
                if not self.read():
                    self.fail(f'{depth} brackets are not closed')
            # Brackets inside a string do not count.
            elif found[0] == '"':
                while (end := STRING_END.match(self.text, self.place)) is None:
                    if not self.read():
                        self.fail('Unterminated string')
                self.place = end.end()
            else:
                depth += 1 if found[0] in '{[' else -1
                if not depth:
                    return

    def read(self) -> bool:
        """Append a chunk, at least as large as what is still needed of the last one; False at the end of the file."""
        # A value of many chunks is parsed from its start after each of them. As the chunks grow with it, this happens
        # only a few times.
        new = self.file.read(max(CHUNK, len(self.text) - self.place)).decode('latin-1')
        if new:
            self.count_lines()
            self.text = self.text[self.place :] + new
            self.dropped += self.place
            self.place = self.counted = 0
        return bool(new)

    def count_lines(self) -> None:
        """Bring `line` and `line_start` up to the current place."""
        last_break = self.text.rfind('\n', self.counted, self.place)
        if last_break >= 0:
            self.line += self.text.count('\n', self.counted, self.place)
            self.line_start = self.dropped + last_break + 1
        self.counted = self.place

    def next_text(self) -> str:
        """The next characters, for a message."""
        return repr(self.text[self.place : self.place + 20].encode('latin-1').decode('utf-8', 'replace'))

    def fail(self, what: str) -> None:
        self.count_lines()
        column = self.dropped + self.place - self.line_start + 1
        raise DataError(f'{self.path}:{self.line}: malformed JSON at column {column}: {what}.')
