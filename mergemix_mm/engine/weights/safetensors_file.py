"""The layout of a safetensors file (https://github.com/huggingface/safetensors#format), read and written by itself.

The library's own writer takes all tensors of a file at once.
"""

import json
from pathlib import Path
from typing import Any

import torch

from ...utils.text import printable, shown
from .stored_tensor import StoredTensor

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

LONGEST_HEADER = 100_000_000  # The library's own limit, in bytes.


def once(pairs: list[tuple[str, Any]]) -> dict:
    """For `json.loads`: a key that is there twice is an error, as one of the two would be lost.

    Raises:
        ValueError: If one is.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f'{shown(next(name for name in names if names.count(name) > 1))} is there twice')
    return found


class SafetensorsFile:
    """The tensors of a file by name, none of them read.

    Args:
        path (Path): The file.

    Raises:
        ValueError: If it is damaged or none of this kind.
    """

    versions = None

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
                f'{printable(path)} is no safetensors file, or of a dtype that is not known here: '
                f'{shown(repr(error), 200)}'
            ) from None
        self._data = end = 8 + length
        # In the order of their bytes, each begins where the last one ended: none overlaps, and nothing is hidden.
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
            record (dict): What JSON can hold; it is added to the metadata under ``mix_weights``.

        Returns:
            dict[str, StoredTensor]: Where the elements belong.
        """
        metadata = {**self._header.get('__metadata__', {}), 'mix_weights': json.dumps(record)}
        header = json.dumps(dict(__metadata__=metadata, **self._entries)).encode()
        header += b' ' * (-len(header) % 8)  # Tensors begin at multiples of 8, as the library has it.
        moved = 8 + len(header) - self._data
        with path.open('wb') as file:
            file.write(len(header).to_bytes(8, 'little') + header)
            file.truncate(self.path.stat().st_size + moved)
        return {name: StoredTensor(path, tensor.start + moved, tensor.like) for name, tensor in self.tensors.items()}
