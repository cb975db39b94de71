"""The error of one unusable record: what `on_error` decides about; and how a value is quoted in one line."""

import re
import reprlib

from ...utils.text import DataError, shown

LONGEST_WORD = 200
LONGEST_MESSAGE = 600


class RecordError(DataError):
    """A record cannot be used; the message begins with its file and line.

    Datasets raise it for malformed turns or missing images, transforms for what shows only later (all answers cut off
    by ``max_length``). With ``on_error='skip'`` such records are counted and replaced; anything else stops the run.

    The message is one line and quotes no payload: line breaks become spaces, and the middle of a word of more than 200
    characters (an image in base64) is left out. Of the text that torch's data loader makes of an error in a worker
    process, only the error itself is kept.

    Args:
        message (str): What is wrong, with file and line.
    """

    def __init__(self, message: str = '') -> None:
        super().__init__(one_line(message))


def one_line(message: object) -> str:
    """A message as one line of at most 600 characters, words of more than 200 cut in their middle."""
    # A data loader raises the error again with the traceback of the worker as its message; the error comes last.
    if 'in DataLoader worker process' in (text := str(message)):
        text = text.rpartition(f'{RecordError.__name__}: ')[2]
    text = re.sub(rf'\S{{{LONGEST_WORD + 1},}}', lambda word: f'{word[0][:80]}...{word[0][-20:]}', text)
    text = re.sub(r'\s*[\r\n\v\f\x85\u2028\u2029]\s*', ' ', text)
    # Lone surrogates and control characters cannot be printed everywhere.
    text = shown(text, limit=None)
    text = text.strip()
    return text if len(text) <= LONGEST_MESSAGE else text[: LONGEST_MESSAGE - 3] + '...'


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 60
        self.maxlist = self.maxdict = self.maxtuple = 4
        self.maxlevel = 3

    def repr_bytes(self, value: bytes, level: int) -> str:
        return f'<{len(value)} bytes>'


def short(value: object, length: int = 80) -> str:
    """``repr`` of any value, cut to a length in characters (80); of bytes only their number."""
    text = _Short().repr(value)
    return text if len(text) <= length else text[: length - 3] + '...'
