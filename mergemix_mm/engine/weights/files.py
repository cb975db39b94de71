"""Files of weights: the names and places of the tensors in them, and their elements in pieces.

A :class:`SafetensorsFile` or a :class:`TorchFile` gives a :class:`StoredTensor` for each name. Both also write the
layout of a file like it, into which elements are put later.
"""

import copy
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.serialization import skip_data

from ...utils.safe_load import load_checkpoint
from ...utils.text import printable, shown

# Elements at a time: a few megabytes, whatever the size of the tensor.
PIECE = 1 << 20
DTYPES = dict(
    F64=torch.float64,
    F32=torch.float32,
    F16=torch.float16,
    BF16=torch.bfloat16,
    F8_E4M3=torch.float8_e4m3fn,
    F8_E5M2=torch.float8_e5m2,
    I64=torch.int64,
    I32=torch.int32,
    I16=torch.int16,
    I8=torch.int8,
    U64=torch.uint64,
    U32=torch.uint32,
    U16=torch.uint16,
    U8=torch.uint8,
    BOOL=torch.bool,
)

LONGEST_HEADER = 100_000_000  # In bytes; the limit of the safetensors library.
WAY_OUT = 'torch.load(weights_only=False)'
# An expanded tensor repeats stored elements. A file that claims more repetitions than this is hostile.
LARGEST_EXPANSION = 1 << 16


@dataclass(frozen=True)
class StoredTensor:
    """The place of a tensor in a file.

    Args:
        path (Path): The file.
        start (int): The byte in the file where its first element begins.
        like (Tensor): On the meta device, with the shape, dtype and strides of the elements after `start`.
    """

    path: Path
    start: int
    like: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.like.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.like.dtype

    @property
    def nbytes(self) -> int:
        return self.like.nbytes

    def pieces(self) -> Iterator[Tensor]:
        """The elements in the order of the tensor, flat, a few megabytes at a time.

        The file is not mapped: pages of a mapped file would count as memory of the process. A tensor whose elements are
        stored in another order (``channels_last``) is read whole.

        Raises:
            ValueError: If the file ends too early.
        """
        if not self.like.is_contiguous():
            yield from self.read().contiguous().view(-1).split(PIECE)
            return
        with self.path.open('rb') as file:
            file.seek(self.start)
            for start in range(0, self.like.numel(), PIECE):
                yield self._read(file, min(PIECE, self.like.numel() - start))

    def read(self) -> Tensor:
        """The whole tensor.

        Raises:
            ValueError: If the file ends too early.
        """
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.like.stride()))
        with self.path.open('rb') as file:
            file.seek(self.start)
            elements = self._read(file, last + 1 if self.like.numel() else 0)
        return elements.as_strided(self.shape, self.like.stride())

    def write(self, pieces: Iterable[Tensor], progress: Callable[[int], object]) -> None:
        """Put the elements of a contiguous tensor into the file, which must exist.

        Args:
            pieces (Iterable[Tensor]): As :meth:`pieces` yields them.
            progress (Callable): Called with the number of bytes of each piece.
        """
        with self.path.open('r+b') as file:  # Not 'wb', which would empty what `reserve` has laid out.
            file.seek(self.start)
            for piece in pieces:
                file.write(piece.view(torch.uint8).numpy().data)
                progress(piece.nbytes)

    def _read(self, file: BufferedReader, count: int) -> Tensor:
        # Read as bytes: numpy has no bfloat16 and no float8.
        elements = torch.empty(count, dtype=self.dtype)
        if file.readinto(elements.view(torch.uint8).numpy().data) != elements.nbytes:
            raise ValueError(f'{self.path} ends within a tensor: it is damaged, or was not copied whole')
        return elements


def once(pairs: list[tuple[str, Any]]) -> dict:
    """An ``object_pairs_hook`` of `json.loads` that refuses repeated keys, of which all but one would be lost.

    Raises:
        ValueError: If a key is repeated.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f'{shown(next(name for name in names if names.count(name) > 1))} is there twice')
    return found


class SafetensorsFile:
    """The tensors of a safetensors file by name, without reading them.

    Source: https://github.com/huggingface/safetensors#format. The library's own writer takes all tensors of a file at
    once, so the format is read and written here.

    Args:
        path (Path): The file.

    Raises:
        ValueError: If it is damaged or of another kind.
    """

    versions = None  # Of modules; this format has no place for them.

    def __init__(self, path: Path) -> None:
        self.path, size = path, path.stat().st_size
        try:
            with path.open('rb') as file:
                length = int.from_bytes(file.read(8), 'little')
                if length > min(size - 8, LONGEST_HEADER):
                    raise ValueError(f'a header of {length} bytes')
                self._header = json.loads(file.read(length), object_pairs_hook=once)
            self._entries = {name: entry for name, entry in self._header.items() if name != '__metadata__'}
            metadata = self._header.get('__metadata__', {})
            if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
                raise ValueError('__metadata__ that is not texts')
            self.tensors = {name: self._tensor(name, entry, 8 + length) for name, entry in self._entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
            raise ValueError(
                f'{printable(path)} is not a safetensors file, or has a dtype that is not known here: '
                f'{shown(repr(error), 200)}'
            ) from None
        self._data = end = 8 + length
        # Sorted by their bytes, each tensor begins where the last one ended: none overlap, and no bytes are hidden
        # between.
        for name, tensor in sorted(self.tensors.items(), key=lambda one: (one[1].start, one[1].nbytes)):
            if tensor.start != end:
                raise ValueError(
                    f'{printable(path)}: {shown(name)} begins at byte {tensor.start}, where {end} is expected: tensors '
                    'overlap, or there is something between them'
                )
            end += tensor.nbytes
        if end != size:
            raise ValueError(
                f'{printable(path)} has {size} bytes, and {end} by its header: it is damaged, or was not copied whole'
            )

    def _tensor(self, name: str, entry: dict, data: int) -> StoredTensor:
        begin, end = entry['data_offsets']
        numbers = [begin, end, *entry['shape']]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError(f'{shown(name)}: {numbers[:6]} must be integers of at least 0')
        like = torch.empty(entry['shape'], dtype=DTYPES[entry['dtype']], device='meta')
        if like.nbytes != end - begin:
            raise ValueError(f'{shown(name)}: {entry} contradicts itself')
        return StoredTensor(self.path, data + begin, like)

    def reserve(self, path: Path, record: dict) -> dict[str, StoredTensor]:
        """Write a file of the same tensors, in the same order, without their elements.

        Args:
            path (Path): The file.
            record (dict): A JSON object; it is added to the metadata under ``mix_weights``.

        Returns:
            dict[str, StoredTensor]: The places of the elements.
        """
        metadata = {**self._header.get('__metadata__', {}), 'mix_weights': json.dumps(record)}
        header = json.dumps(dict(__metadata__=metadata, **self._entries)).encode()
        header += b' ' * (-len(header) % 8)  # As the library writes it: tensors begin at multiples of 8.
        moved = 8 + len(header) - self._data
        with path.open('wb') as file:
            file.write(len(header).to_bytes(8, 'little') + header)
            file.truncate(self.path.stat().st_size + moved)
        return {name: StoredTensor(path, tensor.start + moved, tensor.like) for name, tensor in self.tensors.items()}


class TorchFile:
    """The weights in a file of torch.save by name, without reading them.

    Args:
        path (Path): The file, with a state dict, or a dict that has one under ``state_dict``, as MMEngine writes it.

    Raises:
        ValueError: If it is another file, holds more than weights and plain values, or was written before torch 1.6.
    """

    def __init__(self, path: Path) -> None:
        if not zipfile.is_zipfile(path):
            raise ValueError(
                f'{path} is damaged, or was written before torch 1.6; if torch.load reads it, torch.save it again'
            )
        with FakeTensorMode():  # Makes tensors without memory, which know their place in the file.
            self._content = load_checkpoint(path, flag=WAY_OUT)
        nested = isinstance(self._content, dict) and 'state_dict' in self._content
        self._weights = self._content['state_dict'] if nested else self._content
        if not isinstance(self._weights, dict):
            raise ValueError(f'{path} holds no state dict, but: {type(self._weights).__name__}')
        if not self._weights:
            raise ValueError(f'{path} holds no weights')
        others = [
            str(name) for name, value in self._weights.items() if not (isinstance(name, str) and _is_plain(value))
        ]
        if others:
            raise ValueError(f'{path} holds entries that are not plain tensors: {", ".join(others[:5])}')
        self.path, self.versions = path, getattr(self._weights, '_metadata', None)
        records = _records(path)
        self.tensors = {name: _stored(path, name, value, records) for name, value in self._weights.items()}

    def reserve(self, path: Path, record: dict) -> dict[str, StoredTensor]:
        """Write a checkpoint of the same weights without their elements; of other entries only ``meta`` is kept.

        The checksums in the zip archive, which torch does not read, do not match the elements that are written later.

        Args:
            path (Path): The file.
            record (dict): Added to ``meta`` under ``mix_weights``, if the checkpoint has a ``state_dict`` beside
            ``meta``.

        Returns:
            dict[str, StoredTensor]: The places of the elements.
        """
        weights = copy.copy(self._weights)  # With its `_metadata`.
        with FakeTensorMode():
            for (
                name,
                tensor,
            ) in self.tensors.items():  # Each gets its own memory, also tied and expanded ones, and is contiguous.
                weights[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
        content = weights
        if self._weights is not self._content:
            content = dict(meta={**self._content.get('meta', {}), 'mix_weights': record}, state_dict=weights)
        with skip_data(materialize_fake_tensors=True):
            torch.save(content, path)
        return TorchFile(path).tensors


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized


def _records(path: Path) -> dict[int, int]:
    """The size of each record with elements in the archive, by the byte where it begins.

    Raises:
        ValueError: If one is compressed: elements are read from the file as they are, and torch never compresses them.
    """
    reader: Any = torch._C.PyTorchFileReader(str(path))  # Its types do not tell all of its methods.
    with zipfile.ZipFile(path) as archive:
        infos = {info.filename.partition('/')[2]: info for info in archive.infolist()}
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos.values()):
        raise ValueError(f'{printable(path)} is compressed; if torch.load reads it, torch.save it again')
    return {reader.get_record_offset(name): info.file_size for name, info in infos.items() if name.startswith('data/')}


def _stored(path: Path, name: str, fake: Tensor, records: dict[int, int]) -> StoredTensor:
    storage = fake.untyped_storage()
    last = sum((size - 1) * stride for size, stride in zip(fake.shape, fake.stride())) if fake.numel() else -1
    end = (fake.storage_offset() + last + 1) * fake.itemsize
    begin = storage._checkpoint_offset  # Set by torch's fake tensors of a file; None without a place there.
    room = 0 if begin is None else records.get(begin, 0)
    if (
        begin is None
        or min(fake.storage_offset(), *fake.stride(), 0) < 0
        or end > room
        or fake.nbytes > LARGEST_EXPANSION * (room + 1)
    ):
        raise ValueError(f'{printable(path)}: {shown(name)} reaches beyond its place in the file: it is damaged')
    start = begin + int(fake.storage_offset()) * fake.itemsize
    like = torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device='meta')
    return StoredTensor(path, start, like)
