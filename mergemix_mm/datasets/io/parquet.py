"""Records of Parquet files and of folders that Hugging Face's `datasets` has saved, read one row at a time."""

import glob
import hashlib
import mmap
import os
import re
from abc import abstractmethod
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log

from ...utils.files import replaced_file
from ...utils.text import DataError, RecordError, one_line, quoted
from .fields import IMAGE_KEYS, PART_IMAGE_NAMES, TURN_COLUMNS
from .json_records import read_json

# A row group is decoded as a whole. Above these sizes that takes too long for one row, so the file is copied once into
# Arrow's format, from which single rows are read.
LARGE_ROWS, LARGE_BYTES = 10_000, 128 << 20
# The most that a batch of that copy holds.
BATCH_ROWS, BATCH_BYTES = 1000, 16 << 20
# Mapped pages of an Arrow file count as memory of this process until they are released, after this many bytes.
BYTES_PER_RELEASE = 32 << 20
# What reading one row maps at least: the system also maps pages around those that are read.
BYTES_AROUND_ROW = 512 << 10
END_OF_STREAM = b'\xff\xff\xff\xff\0\0\0\0'
SPLIT = re.compile(r'(train|training|test|testing|validation|val|valid|dev|eval)(?![A-Za-z])', re.IGNORECASE)


def is_table(path: str | os.PathLike) -> bool:
    """Whether a path names Parquet or Arrow files: by its suffix, as a folder, or by a pattern such as ``*``."""
    path = os.fspath(path)
    return Path(path).suffix in ('.parquet', '.arrow') or os.path.isdir(path) or _is_pattern(path)


class TableRecords:
    """A sequence of the rows of tables that stay in their files.

    Memory holds, for each file, the number of rows of each batch and what was read last: one decoded row group of a
    Parquet file, and nothing of an Arrow file, which is mapped. Rows become dicts of plain Python values. Every process
    opens the files for itself, and objects can be pickled.

    A Parquet file with a row group of more than 10,000 rows or 128 MB would be slow to read in random order. It is
    copied once into Arrow's format, below ``$XDG_CACHE_HOME`` (``~/.cache``), and read from there.

    Args:
        path (str | Path): A Parquet or Arrow file; a pattern that matches several, such as ``'data/train-*.parquet'``;
            a folder of Parquet files, all of one split; or a folder of ``Dataset.save_to_disk`` (for a ``DatasetDict``,
            the folder of one split).

    Attributes:
        flags (np.ndarray): [N] bool, whether each row has images.
        columns (dict): The names of all columns; the value is None, or for turns a list with the names of their fields.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file has another format than its name says, is cut off or damaged, or a folder holds no table
            or tables of several splits; names the file.
        ImportError: If pyarrow is not installed.
    """

    other_keys: Counter[str]  # Set by `open_records`.

    def __init__(self, path: str | Path) -> None:
        _pyarrow()
        self.path = os.fspath(path)
        self.is_saved_dataset = os.path.isfile(os.path.join(self.path, 'state.json'))
        self.files = [_open(file) for file in _find_files(self.path)]
        self.ends = np.cumsum([len(file) for file in self.files]).tolist()
        self.flags = np.concatenate([file.flags for file in self.files])
        self.columns = {name: fields for file in self.files[::-1] for name, fields in file.columns.items()}

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one row.

        Raises:
            IndexError: If ``index`` is not in [-N, N).
            RecordError: If its part of the file is damaged, or a text of it is not UTF-8.
        """
        file, place = self._place(index)
        try:
            return file.row(place)
        except (OSError, ValueError, _pyarrow_error()) as error:
            raise RecordError(f'{self.source(index)}: the row cannot be read: {error}') from error

    @cached_property
    def lengths(self) -> np.ndarray:
        """The bytes of all texts of each row, [N] int64, without images and their names.

        The columns of texts are read once for it, and the rows are not.
        """
        return np.concatenate([file.lengths() for file in self.files])

    def source(self, index: int) -> str:
        """``'path: row 12'``, from 0; for a saved dataset, the folder and the row in the whole dataset."""
        if self.is_saved_dataset:
            return f'{self.path}: row {range(len(self))[index]}'
        file, place = self._place(index)
        return f'{file.path}: row {place}'

    def _place(self, index: int) -> tuple['_File', int]:
        index = range(len(self))[index]
        file = bisect_right(self.ends, index)
        return self.files[file], index - (self.ends[file - 1] if file else 0)


class _File:
    """A file with batches of rows; ``starts`` holds the first row of each batch and, at its end, the number of rows."""

    KIND: str

    def __init__(self, path: str, content: str | None = None) -> None:
        self.path = path
        self.content = content or path  # A copy is read, while errors name the original.
        self._opened, self._process = None, None
        try:
            self.starts, self.flags, self.columns = self.index()
        except (OSError, ValueError, _pyarrow_error()) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise DataError(f'{path}: cannot be read as {self.KIND}: {one_line(error)}') from error
        # Indexing opened the file; every worker process opens it again for itself.
        self._opened = None

    def __len__(self) -> int:
        return self.starts[-1]

    @abstractmethod
    def open(self) -> dict:
        """Open the file: ``file``, and what the batches need."""

    @abstractmethod
    def index(self) -> tuple[list[int], np.ndarray, dict]:
        """``starts``, ``flags`` and ``columns``."""

    @abstractmethod
    def batch(self, number: int) -> Any:
        """A batch of rows."""

    @abstractmethod
    def lengths(self) -> np.ndarray:
        """The bytes of the texts of each row, [N] int64."""

    def row(self, place: int) -> dict[str, Any]:
        batch = bisect_right(self.starts, place) - 1
        return self.batch(batch).slice(place - self.starts[batch], 1).to_pylist()[0]

    def opened(self):
        """The open file; a forked worker does not share that of its parent."""
        if self._opened is None or self._process != os.getpid():
            self._opened, self._process = self.open(), os.getpid()
        return self._opened

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_opened': None, '_process': None}


class _ParquetFile(_File):
    """Row groups are decoded one at a time; the last one is kept."""

    KIND = 'Parquet'

    def open(self) -> dict:
        from pyarrow.parquet import ParquetFile

        return dict(file=ParquetFile(self.path, memory_map=True), number=None, table=None)

    def index(self) -> tuple[list[int], np.ndarray, dict]:
        file = self.opened()['file']
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        self.is_large = any(group.num_rows > LARGE_ROWS or group.total_byte_size > LARGE_BYTES for group in groups)
        starts = np.cumsum([0, *(group.num_rows for group in groups)]).tolist()
        columns = _columns(file.schema_arrow)
        if self.is_large:
            return starts, np.empty(0, bool), columns
        flags = [self.group_flags(file, number) for number in range(len(groups))]
        return starts, np.concatenate([np.empty(0, bool), *flags]), columns

    def batch(self, number: int):
        opened = self.opened()
        if opened['number'] != number:
            opened.update(number=None, table=None)  # Memory never holds two groups.
            # One thread: the worker processes of a data loader run side by side already.
            opened.update(number=number, table=opened['file'].read_row_group(number, use_threads=False))
        return opened['table']

    def lengths(self) -> np.ndarray:
        file = self.opened()['file']
        leaves = (file.schema.column(place) for place in range(len(file.schema)))
        # Names of leaves, so that images beside the texts of a message are not read.
        texts = [one.path for one in leaves if one.logical_type.type == 'STRING' and not _names_image(one.path)]
        numbers = range(file.num_row_groups)
        found = [text_lengths(batch) for number in numbers for batch in self.batches(file, number, texts)]
        return np.concatenate([np.empty(0, np.int64), *found]) if texts else np.zeros(len(self), np.int64)

    def group_flags(self, file, number: int) -> np.ndarray:
        """Which rows of a group have images, if possible without reading the images."""
        group = file.metadata.row_group(number)
        found = np.zeros(group.num_rows, bool)
        names = [file.schema.column(place).path for place in range(len(file.schema))]
        for key in (key for key in IMAGE_KEYS if key in file.schema_arrow.names):
            leaves = {name: group.column(place) for place, name in enumerate(names) if name.split('.')[0] == key}
            found |= self.image_flags(file, number, leaves)
        nested = [key for key in TURN_COLUMNS if key in file.schema_arrow.names and _has_parts(file.schema_arrow, key)]
        if nested:
            found |= np.concatenate([rows_with_images(batch) for batch in self.batches(file, number, nested)])
        return found

    def image_flags(self, file, number: int, leaves: dict) -> np.ndarray:
        """The same for one column of images, from its ``leaves``: the names with the metadata of their chunks."""
        content = next((name for name in leaves if name == name.split('.')[0] or name.endswith('.bytes')), None)
        statistics = content and leaves[content].statistics
        if statistics and statistics.has_null_count and not statistics.null_count:
            return np.ones(file.metadata.row_group(number).num_rows, bool)
        paths = [name for name in leaves if name.endswith('.path')]
        if paths and content and statistics and statistics.has_null_count:
            # An image has bytes, a path or both. The metadata tell how many have bytes; if that is all of them or none,
            # the short column of paths says which rows have an image.
            batches = list(self.batches(file, number, paths))
            given = leaves[content].num_values - statistics.null_count
            if sum(_count_structs(batch.column(0)) for batch in batches) == given or not given:
                columns = [_given(batch.column(0), any_struct=bool(given)) for batch in batches]
                return np.concatenate([np.empty(0, bool), *columns])
        columns = [_given(batch.column(0)) for batch in self.batches(file, number, list(leaves))]
        return np.concatenate([np.empty(0, bool), *columns])

    def batches(self, file, number: int, columns: Sequence[str]):
        return file.iter_batches(256, row_groups=[number], columns=list(columns), use_threads=False)

    def to_arrow(self) -> '_ArrowFile':
        """The same rows in Arrow's format, copied once."""
        import pyarrow as pa

        status = os.stat(self.path)
        # A file that has changed gets another name, and so another copy.
        name = f'{os.path.abspath(self.path)} {status.st_size} {status.st_mtime_ns} 1'
        folder = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache', 'mergemix_mm', 'tables')
        target = folder / f'{hashlib.sha256(name.encode()).hexdigest()[:32]}.arrow'
        if not target.is_file():
            file = self.opened()['file']
            size = sum(file.metadata.row_group(number).total_byte_size for number in range(file.num_row_groups))
            rows = int(np.clip(BATCH_BYTES * len(self) // max(size, 1), 1, BATCH_ROWS))
            print_log(
                f'{self.path}: its row groups are large; copying {size / 1e9:.2f} GB to {target} once, to read rows in '
                'any order.',
                logger='current',
            )
            try:
                with (
                    replaced_file(target) as temporary,
                    pa.OSFile(os.fspath(temporary), 'wb') as sink,
                    pa.ipc.new_file(sink, file.schema_arrow) as writer,
                ):
                    for batch in file.iter_batches(rows, use_threads=False):
                        writer.write_batch(batch)
            except (ValueError, _pyarrow_error()) as error:
                raise DataError(f'{self.path}: cannot be read as {self.KIND}: {one_line(error)}') from error
        return _ArrowFile(self.path, os.fspath(target))


class _ArrowFile(_File):
    """The file is mapped into memory, and its batches refer to it."""

    KIND = 'Arrow'

    def open(self) -> dict:
        import pyarrow as pa

        with open(self.content, 'rb') as file:
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # Rows are read in random order; reading ahead would only fill the memory.
        pages.madvise(mmap.MADV_RANDOM)
        buffer = pa.py_buffer(pages)
        if pages[:6] == b'ARROW1':
            reader = pa.ipc.open_file(buffer)
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        else:
            # Arrow reads a stream without its end mark as a shorter one, without an error.
            if pages[-8:] != END_OF_STREAM:
                raise ValueError('the file is cut off')
            reader = pa.ipc.open_stream(buffer)
            batches = list(reader)
        return dict(pages=pages, batches=batches, schema=reader.schema, checked=set(), read=0)

    def index(self) -> tuple[list[int], np.ndarray, dict]:
        opened = self.opened()
        starts = np.cumsum([0, *(batch.num_rows for batch in opened['batches'])]).tolist()
        flags = [rows_with_images(self.batch(number)) for number in range(len(opened['batches']))]
        return starts, np.concatenate([np.empty(0, bool), *flags]), _columns(opened['schema'])

    def lengths(self) -> np.ndarray:
        found = [text_lengths(self.batch(number)) for number in range(len(self.opened()['batches']))]
        return np.concatenate([np.empty(0, np.int64), *found])

    def batch(self, number: int):
        opened = self.opened()
        batch = opened['batches'][number]
        if number not in opened['checked']:
            # Arrow trusts the offsets of a file; in a damaged one they would lead to foreign memory.
            batch.validate(full=True)
            opened['checked'].add(number)
            opened['read'] += batch.nbytes
        else:
            opened['read'] += max(batch.nbytes // max(batch.num_rows, 1), BYTES_AROUND_ROW)
        if opened['read'] > BYTES_PER_RELEASE:
            opened['pages'].madvise(mmap.MADV_DONTNEED)
            opened['read'] = 0
        return batch


def rows_with_images(batch) -> np.ndarray:
    """Which rows of a table name an image, beside their turns or inside the parts of these: [N] bool.

    The result equals ``has_images`` of each row, but no Python objects are made of the rows.

    Args:
        batch (pyarrow.RecordBatch | pyarrow.Table): The rows.
    """
    found = np.zeros(batch.num_rows, bool)
    for name in (name for name in batch.schema.names if name in IMAGE_KEYS):
        found |= _given(_array(batch, name))
    for name in (name for name in batch.schema.names if name in TURN_COLUMNS):
        if _has_parts(batch.schema, name):
            found |= _image_parts(_array(batch, name))
    return found


def text_lengths(batch) -> np.ndarray:
    """The bytes of all texts of each row, [N] int64, without those that name an image.

    Args:
        batch (pyarrow.RecordBatch | pyarrow.Table): The rows.
    """
    names = [name for name in batch.schema.names if not _names_image(name)]
    return sum((_text_bytes(_array(batch, name)) for name in names), np.zeros(batch.num_rows, np.int64))


def _names_image(path: str) -> bool:
    """Whether a column or a field (``'messages.list.element.url'``) holds images or where they are."""
    return not {*IMAGE_KEYS, *PART_IMAGE_NAMES}.isdisjoint(path.split('.'))


def _text_bytes(array) -> np.ndarray:
    """The bytes of the texts inside each value, [N] int64."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return _text_bytes(array.storage)
    if pa.types.is_dictionary(kind):
        return _text_bytes(array.dictionary_decode())
    if _is_list(kind):
        rows = np.repeat(np.arange(len(array)), _list_lengths(array))
        return np.bincount(rows, _text_bytes(array.flatten()), len(array)).astype(np.int64)
    if pa.types.is_struct(kind):
        fields = [place for place in range(kind.num_fields) if not _names_image(kind.field(place).name)]
        return sum((_text_bytes(array.field(place)) for place in fields), np.zeros(len(array), np.int64))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pc.fill_null(pc.binary_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return np.zeros(len(array), np.int64)


def _open(path: str) -> _File:
    if Path(path).suffix == '.parquet':
        with open(path, 'rb') as file:
            start = file.read(64)
        if not start.startswith(b'PAR1'):
            kind = (
                'a Git LFS pointer; git lfs pull fetches the file'
                if start.startswith(b'version https://git-lfs')
                else ''
            )
            kind = kind or (
                'empty' if not start else f'something else, which begins with {quoted(start[:16].decode("latin-1"))}'
            )
            raise DataError(f'{path}: should be a Parquet file, but is {kind}.')
        found = _ParquetFile(path)
        return found.to_arrow() if found.is_large else found
    if not os.path.getsize(path):
        raise DataError(f'{path}: should be an Arrow file, but is empty.')
    return _ArrowFile(path)


def _find_files(path: str) -> list[str]:
    """The files of a table, in order."""
    if os.path.isfile(os.path.join(path, 'dataset_dict.json')):
        splits = sorted(place.name for place in Path(path).iterdir() if (place / 'state.json').is_file())
        raise DataError(
            f'{path}: is a DatasetDict with the splits {splits}; name the folder of one of them, such as '
            f'{os.path.join(path, (splits or ["train"])[-1])}.'
        )
    if os.path.isfile(os.path.join(path, 'state.json')):
        return _saved_files(path)
    if os.path.isdir(path):
        files = sorted(glob.glob(os.path.join(glob.escape(path), '*.parquet')))
        _check_splits(path, files)
    else:
        files = sorted(glob.glob(path, recursive=True)) if _is_pattern(path) else [path]
    if not files:
        raise FileNotFoundError(f'{path}: no Parquet file is there, nor a folder of Dataset.save_to_disk.')
    for file in files:
        if Path(file).suffix not in ('.parquet', '.arrow'):
            raise DataError(
                f'{file}: only Parquet (.parquet) and Arrow (.arrow) files may be several; {path} matches it.'
            )
    return files


def _saved_files(folder: str) -> list[str]:
    """The files of a folder of `save_to_disk`, which its state names in order."""
    state = read_json(os.path.join(folder, 'state.json'))
    entries = state.get('_data_files') if isinstance(state, dict) else None
    names = [entry.get('filename') if isinstance(entry, dict) else None for entry in entries or ()]
    # A name with a folder in it could lead out of this one.
    if not names or not all(isinstance(name, str) and name == os.path.basename(name) for name in names):
        raise DataError(f'{folder}/state.json: must name its files under _data_files, found {quoted(entries)}.')
    if isinstance(state.get('_indices_data_files'), list) and state['_indices_data_files']:
        raise DataError(
            f'{folder}: keeps its rows in another order (_indices_data_files); save it with flatten_indices().'
        )
    return [os.path.join(folder, str(name)) for name in names]


def _check_splits(folder: str, files: Sequence[str]) -> None:
    """Refuse a folder with files of several splits: the test split would become training data."""
    names = [SPLIT.match(os.path.basename(file)) for file in files]
    splits = sorted({'' if name is None else name[1].lower() for name in names})
    if len(splits) > 1:
        named = [split or 'others' for split in splits]
        raise DataError(
            f'{folder}: its Parquet files are of several splits, {named}; name those of one, such as '
            f'{os.path.join(folder, splits[-1] + "*.parquet")}.'
        )


def _is_pattern(path: str) -> bool:
    return glob.has_magic(path) and not os.path.exists(path)


def _columns(schema) -> dict[str, list[str] | None]:
    """The names of the columns, and for turns those of their fields."""
    import pyarrow as pa

    found = {}
    for field in schema:
        kind = field.type
        while _is_list(kind):
            kind = kind.value_type
        found[field.name] = [one.name for one in kind] if pa.types.is_struct(kind) else None
    return found


def _has_parts(schema, name: str) -> bool:
    """Whether the turns of a column may hold more than text."""
    import pyarrow as pa

    kind = schema.field(name).type
    while _is_list(kind):
        kind = kind.value_type
    if not pa.types.is_struct(kind):
        return False
    fields = [kind.field(place).type for place in range(kind.num_fields)]
    return any(_is_list(one) or pa.types.is_struct(one) for one in fields)


def _is_list(kind) -> bool:
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _array(batch, name: str):
    """A column as one array."""
    import pyarrow as pa

    column = batch.column(name)
    return pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column


def _given(array, any_struct: bool = False) -> np.ndarray:
    """Whether each value says anything, like `is_given`; with ``any_struct``, every struct that is not null does."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return _given(array.storage, any_struct)
    if pa.types.is_dictionary(kind):
        return _given(array.dictionary_decode(), any_struct)
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    if _is_list(kind):
        return _any_of(array, _given(array.flatten(), any_struct)) & valid
    if pa.types.is_struct(kind):
        if any_struct:
            return valid
        children = [_given(array.field(place)) for place in range(kind.num_fields)]
        return valid & np.any([np.zeros(len(array), bool), *children], axis=0)
    if pa.types.is_null(kind):
        return np.zeros(len(array), bool)
    try:
        return valid & pc.fill_null(pc.greater(pc.binary_length(array), 0), False).to_numpy(zero_copy_only=False)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return valid


def _any_of(array, flags: np.ndarray) -> np.ndarray:
    """Whether any element of each list has its flag set; ``flags`` has one entry per element, in their order."""
    rows = np.repeat(np.arange(len(array)), _list_lengths(array))
    return np.bincount(rows[flags], minlength=len(array)) > 0


def _list_lengths(array) -> np.ndarray:
    """The number of elements of each list, 0 for null."""
    import pyarrow.compute as pc

    return pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)


def _image_parts(array) -> np.ndarray:
    """Whether each value is a part of a message that is an image, or holds one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if _is_list(array.type):
        return _any_of(array, _image_parts(array.flatten()))
    if not pa.types.is_struct(array.type):
        return np.zeros(len(array), bool)
    fields = {array.type.field(place).name: array.field(place) for place in range(array.type.num_fields)}
    nested = [_image_parts(fields[name]) for name in ('content', 'value') if name in fields]
    images = [_given(fields[name]) for name in PART_IMAGE_NAMES if name in fields]
    found = np.any([np.zeros(len(array), bool), *images], axis=0)
    if 'type' in fields and pa.types.is_string(fields['type'].type):
        kind = fields['type']
        named = pc.is_in(kind, value_set=pa.array(['image', 'image_url'])).to_numpy(zero_copy_only=False)
        found = named | (found & kind.is_null().to_numpy(zero_copy_only=False))
    return np.any([found, *nested], axis=0) & array.is_valid().to_numpy(zero_copy_only=False)


def _count_structs(array) -> int:
    """The number of structs, at any depth of lists, that are not null."""
    while _is_list(array.type):
        array = array.flatten()
    return len(array) - array.null_count


def _pyarrow():
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError('Parquet files and folders of datasets need pyarrow: pip install pyarrow') from error
    return pyarrow


def _pyarrow_error() -> type[Exception]:
    return _pyarrow().ArrowException
