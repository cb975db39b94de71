"""Texts for people: those of others (answers, records, file names) as a terminal can show them, and one-line errors."""

import re

# Control characters but for the line break and the tab, marks that turn the direction of reading, and halves of pairs.
_STEERING = re.compile(r'[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]')


class DataError(ValueError):
    """Something in the data cannot be used; the message is one line and begins with its file and line.

    Tools end with the message instead of a traceback.
    """


def printable(text: object) -> str:
    r"""A text whose control characters are shown, not sent: an escape becomes the four characters ``\x1b``.

    Line breaks, tabs and everything that is written in any script stay as they are; ``\r\n`` becomes ``\n``.
    """
    return _STEERING.sub(_written, str(text).replace('\r\n', '\n'))


def shown(text: object, limit: int | None = 80) -> str:
    """A text of others for a message of one line.

    Every character that is not visible is written out, and the middle is cut out of what has more than ``limit``
    characters (None: nothing is).
    """
    line = str(text)
    if limit is not None and len(line) > limit:
        line = f'{line[: limit * 2 // 3]}...{line[len(line) - (limit - limit * 2 // 3 - 3) :]}'
    return ''.join(character if character.isprintable() else ascii(character)[1:-1] for character in line)


def _written(found: re.Match) -> str:
    return ascii(found[0])[1:-1]
