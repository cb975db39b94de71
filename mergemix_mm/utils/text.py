"""The one place that quotes texts and values of others (answers, records, file names, errors), and one-line errors.

Four ways to quote: a text that keeps its lines (:func:`printable`), a text in one line (:func:`shown`), any value in
one line (:func:`quoted`), and a whole message or error as one line (:func:`one_line`).
"""

import re
import reprlib

# Longer words in a message are content (an image in base64), not something to read.
LONGEST_WORD = 200
# Control characters but for the line break and the tab, marks that turn the direction of reading, and halves of pairs:
# a terminal would obey the first two, and cannot encode the last.
_STEERING = re.compile(r'[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]')
_LINE_BREAK = re.compile(r'\s*[\r\n\v\f\x85\u2028\u2029]\s*')


class DataError(ValueError):
    """Something in the data cannot be used; the message is one line and begins with its file and line.

    Tools end with the message instead of a traceback.
    """


class RecordError(DataError):
    """A record cannot be used; the message begins with its file and line.

    Datasets raise it for malformed turns or missing images, transforms for what only shows later (all answers cut off
    by ``max_length``). With ``on_error='skip'`` such records are counted and replaced; any other error stops the run.

    The message is one line and quotes no content, see :func:`one_line`.

    Args:
        message (str): What is wrong, with file and line.
    """

    def __init__(self, message: str = '') -> None:
        # A data loader raises the error again with the traceback of its worker as the message; the error comes last.
        if 'in DataLoader worker process' in message:
            message = message.rpartition(f'{RecordError.__name__}: ')[2]
        super().__init__(one_line(message))


def printable(text: object) -> str:
    r"""A text whose control characters are shown, not sent: an escape becomes the four characters ``\x1b``.

    Line breaks, tabs and everything that is written in any script stay as they are; ``\r\n`` becomes ``\n``.
    """
    return _STEERING.sub(lambda found: _escaped(found[0]), str(text).replace('\r\n', '\n'))


def shown(text: object, limit: int | None = 80) -> str:
    """A text of others for a message of one line.

    Every character that is not visible is written out, line breaks included, and the middle is cut out of a text of
    more than ``limit`` characters.

    Args:
        text (object): The text, or something whose ``str`` is wanted.
        limit (int, optional): The longest text that stays whole. Defaults to 80. None cuts nothing.
    """
    line = str(text)
    if limit is not None and len(line) > limit:
        line = f'{line[: limit * 2 // 3]}...{line[len(line) - (limit - limit * 2 // 3 - 3) :]}'
    return ''.join(character if character.isprintable() else _escaped(character) for character in line)


def quoted(value: object, limit: int = 80) -> str:
    """The ``repr`` of any value for a message of one line, cut at its end; of bytes only their number.

    Only the first entries of lists and dicts are written, and only a few levels: a value may be as large as a file.

    Args:
        value (object): What was found.
        limit (int): The most characters. Defaults to 80.
    """
    text = shown(_SHORT.repr(value), None)
    return text if len(text) <= limit else f'{text[: limit - 3]}...'


def one_line(message: object, limit: int = 600) -> str:
    """A message or an error as one line, cut at its end; the name of its class for an error without a message.

    Line breaks become spaces, and the middle of a word of more than 200 characters is left out.

    Args:
        message (object): The message, or the error.
        limit (int): The most characters. Defaults to 600.
    """
    text = str(message)
    if not text.strip() and isinstance(message, BaseException):
        return type(message).__name__
    text = re.sub(rf'\S{{{LONGEST_WORD + 1},}}', lambda word: f'{word[0][:80]}...{word[0][-20:]}', text)
    text = shown(_LINE_BREAK.sub(' ', text), None).strip()
    return text if len(text) <= limit else f'{text[: limit - 3]}...'


def _escaped(character: str) -> str:
    return ascii(character)[1:-1]


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 60
        self.maxlist = self.maxdict = self.maxtuple = 4
        self.maxlevel = 3

    def repr_bytes(self, value: bytes, level: int) -> str:
        return f'<{len(value)} bytes>'


_SHORT = _Short()
