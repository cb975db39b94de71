"""The layout of a safetensors file (https://github.com/huggingface/safetensors#format), read and written by itself.

The library's own writer takes all tensors of a file at once.
"""

import json
from pathlib import Path

import torch

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
                self._header = json.loads(file.read(length if length <= size else 0))
            self._entries = {name: entry for name, entry in self._header.items() if name != '__metadata__'}
            self.tensors = {name: self._tensor(entry, 8 + length) for name, entry in self._entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f'{path} is no safetensors file, or of a dtype that is not known here: {error!r}'
            ) from None
        self._data = 8 + length
        end = max((tensor.start + tensor.nbytes for tensor in self.tensors.values()), default=self._data)
        if end != size:
            raise ValueError(
                f'{path} has {size} bytes, and {end} by its header: it is damaged, or was not copied whole'
            )

    def _tensor(self, entry: dict, data: int) -> StoredTensor:
        begin, end = entry['data_offsets']
        like = torch.empty(entry['shape'], dtype=DTYPES[entry['dtype']], device='meta')
        if like.nbytes != end - begin:
            raise ValueError(f'{entry} contradicts itself')
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
