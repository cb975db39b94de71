"""Records of a JSON array or JSON-lines file, indexed by byte offsets and parsed one at a time."""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

from .record_error import RecordError

CHUNK = 1 << 20
# Errors this close to the end of what was read so far, or inside a string, may only mean that more has to be read.
TAIL = 16
SPACE = re.compile(r'[ \t\r\n]*')
DECODER = json.JSONDecoder()
Element = TypeVar('Element')


class JsonRecords:
    """A sequence of JSON objects that stay in their file.

    One pass over the file checks its syntax and keeps 25 bytes per record: where it begins and ends, its line, a flag.
    ``records[i]`` then seeks, reads and parses one record. Line layout does not matter: an array may be pretty-printed
    or one single line. Every process opens the file for itself, and objects can be pickled.

    Args:
        path (str | Path): A file that holds an array of objects (``.json``), or one object after the other
            (``.jsonl``). Which of the two is read from its first character.
        flag (Callable[[dict], bool], optional): Computed once per record, in their order; see ``flags``. It must not
            depend on text outside ASCII, which is not decoded yet when it is called. Defaults to None, which means
            False.
        key (str, optional): The array is the value of this key of a top-level object, as in the files of VQAv2.
            Defaults to None.

    Attributes:
        flags (np.ndarray): [N] bool, ``flag`` of each record.
        lines (np.ndarray): [N] int64, the line on which each record begins, from 1.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is empty or is not valid JSON; names file, line and column.
    """

    def __init__(self, path: str | Path, flag: Callable[[dict], bool] | None = None, key: str | None = None) -> None:
        self.path = os.fspath(path)
        columns = ([], [], [], [])
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
        self._file, self._process = None, None

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict:
        """Read and parse one record.

        Raises:
            IndexError: If ``index`` is not in [-N, N).
            RecordError: If its bytes are not UTF-8.
        """
        start, end = int(self.starts[index]), int(self.ends[index])
        # A forked worker would share the position inside the file with its parent.
        if self._process != os.getpid():
            self._file, self._process = open(self.path, 'rb'), os.getpid()  # noqa: SIM115
        self._file.seek(start)
        try:
            return json.loads(self._file.read(end - start).decode('utf-8'))
        except UnicodeDecodeError as error:
            raise RecordError(f'{self.source(index)}: the record is not UTF-8 ({error})') from error

    def source(self, index: int) -> str:
        """``'path:line'``; records that share their line with a neighbour also give their number, from 0."""
        index = range(len(self))[index]
        near = self.lines[max(index - 1, 0) : index + 2]
        number = f' (record {index})' if (near == self.lines[index]).sum() > 1 else ''
        return f'{self.path}:{self.lines[index]}{number}'

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_file': None, '_process': None}


class _Scanner:
    """Walks through a JSON file chunk by chunk.

    The bytes are read as Latin-1, so that one character is one byte: JSON's own characters are all ASCII.
    """

    def __init__(self, file, path: str) -> None:
        self.file, self.path = file, path
        self.text, self.place = '', 0
        self.dropped = 0  # bytes before `text`
        self.counted, self.line, self.line_start = 0, 1, 0  # place in `text`, its line, and the byte that begins it

    def records(self, key: str | None) -> Iterator[tuple[int, int, int, dict]]:
        """Yields (first byte, byte after the last, line, object)."""
        if self.file.read(3) != b'\xef\xbb\xbf':
            self.file.seek(0)
        else:
            self.dropped = self.line_start = 3
        if key is not None:
            self.enter(key)
        elif self.next_character() == '':
            raise ValueError(f'{self.path}: the file is empty, but should hold JSON records.')
        if self.next_character() == '[':
            yield from self.array(self.record)
            if key is None and self.next_character():
                self.fail(f'found {self.text[self.place : self.place + 20]!r} behind the array')
        elif key is not None:
            self.fail(f'the value of {key!r} must be an array')
        else:
            while self.next_character():
                yield self.record()

    def enter(self, key: str) -> None:
        """Move to the value of a key of the top-level object."""
        self.expect('{')
        found = []
        while True:
            if self.next_character() != '"':
                self.fail(f'no key {key!r} in the top-level object, only {found}')
            found.append(self.value())
            self.expect(':')
            if found[-1] == key:
                self.next_character()
                return
            self.pass_over()
            if self.next_character() == ',':
                self.place += 1

    def pass_over(self) -> None:
        """Move behind the current value, of an array element by element: it may be as large as the file."""
        if self.next_character() != '[':
            self.value()
            return
        for _ in self.array(self.value):
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
            self.fail(f'a record must be an object {{...}}, found {self.text[self.place : self.place + 20]!r}')
        self.count_lines()
        start, line = self.dropped + self.place, self.line
        value = self.value()
        return start, self.dropped + self.place, line, value

    def next_character(self) -> str:
        """Skip white space; the next character, or '' at the end of the file."""
        while True:
            self.place = SPACE.match(self.text, self.place).end()
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
            else:
                # Digits at the very end of a chunk may go on in the next one.
                if end == len(self.text) and isinstance(value, (int, float)) and self.read():
                    continue
                self.place = end
                return value

    def read(self) -> bool:
        """Append a chunk, at least as large as what is still needed of the last one; False at the end of the file."""
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

    def fail(self, what: str) -> None:
        self.count_lines()
        column = self.dropped + self.place - self.line_start + 1
        raise ValueError(f'{self.path}:{self.line}: malformed JSON at column {column}: {what}.')
