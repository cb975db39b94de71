"""Opens a file of records, whatever its format, and counts the keys that nothing uses."""

import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from mmengine.logging import print_log

from ...utils.text import one_line
from .fields import has_images
from .json_records import JsonRecords
from .parquet import TableRecords, is_table

# Keys that the log names; the others are counted.
NUM_KEYS_SHOWN = 20


def open_records(
    path: str | Path, other_keys: Callable[[dict], Iterable[str]] | None = None
) -> JsonRecords | TableRecords:
    """Open the records of a JSON, JSON-lines, Parquet or Arrow file, of several by a pattern, or of a folder.

    Args:
        path (str | Path): See :class:`JsonRecords` and :class:`TableRecords`.
        other_keys (Callable[[dict], Iterable[str]], optional): From a record to its keys that are kept but not used.
            They are counted, and logged in one line. Defaults to None.

    Returns:
        JsonRecords | TableRecords: ``flags`` says which records have images. ``other_keys`` is a Counter: how many
        records have each of the keys (of a table: the number of its rows).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not in the format that its name says; names it.
    """
    counts: Counter[str] = Counter()
    records: JsonRecords | TableRecords
    if is_table(path):
        records = TableRecords(path)
        if other_keys is not None:
            # A row that has all columns stands for all rows.
            row = {
                name: 1 if fields is None else [dict.fromkeys(fields, 1)] for name, fields in records.columns.items()
            }
            counts.update(dict.fromkeys(other_keys(row), len(records)))
    else:

        def look_at(raw: dict) -> bool:
            if other_keys is not None:
                counts.update(other_keys(raw))
            return has_images(raw)

        records = JsonRecords(path, flag=look_at)
        # JsonRecords calls look_at with text that is not decoded yet.
        counts = Counter({_decoded(key): count for key, count in counts.items()})
    records.other_keys = counts
    if counts:
        shown = [f'{one_line(key)} ({count})' for key, count in counts.most_common(NUM_KEYS_SHOWN)]
        more = f' and {len(counts) - NUM_KEYS_SHOWN} more' if len(counts) > NUM_KEYS_SHOWN else ''
        print_log(
            f'{os.fspath(path)}: keys that are kept as they are and not trained on, with their records: '
            f'{", ".join(shown)}{more}.',
            logger='current',
        )
    return records


def _decoded(key: str) -> str:
    """A key whose bytes were read as Latin-1; one that was written with escapes is right already."""
    try:
        return key.encode('latin-1').decode('utf-8')
    except UnicodeError:
        return key
