"""The layout of checkpoints that torch.save wrote, without reading their tensors."""

import copy
import zipfile
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.serialization import skip_data

from ...utils.safe_load import load_checkpoint
from ...utils.text import printable, shown
from .stored_tensor import StoredTensor

WAY_OUT = 'torch.load(weights_only=False)'
# Elements of a tensor for each that is stored: an expanded one repeats them.
LARGEST_EXPANSION = 1 << 16


class TorchFile:
    """The weights of a checkpoint by name, none of them read.

    Args:
        path (Path): A state dict, or a dict with one under ``state_dict``, as MMEngine writes it.

    Raises:
        ValueError: If it is none, holds more than weights and plain values, or was written before torch 1.6.
    """

    def __init__(self, path: Path) -> None:
        if not zipfile.is_zipfile(path):
            raise ValueError(
                f'{path} is damaged, or was written before torch 1.6; if torch.load reads it, torch.save it again'
            )
        with FakeTensorMode():  # Tensors without memory, which know their place in the file.
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
            raise ValueError(f'{path} holds entries that are no plain tensors: {", ".join(others[:5])}')
        self.path, self.versions = path, getattr(self._weights, '_metadata', None)
        records = _records(path)
        self.tensors = {name: _stored(path, name, value, records) for name, value in self._weights.items()}

    def reserve(self, path: Path, record: dict) -> dict[str, StoredTensor]:
        """Write a checkpoint of the same weights without their elements; only ``meta`` is kept of what else there was.

        The checksums in the zip archive, which torch does not read, are not those of the elements.

        Args:
            path (Path): The file.
            record (dict): Added to ``meta`` under ``mix_weights``, where there is a ``state_dict`` beside it.

        Returns:
            dict[str, StoredTensor]: Where the elements belong.
        """
        weights = copy.copy(self._weights)  # With its `_metadata`.
        with FakeTensorMode():
            for name, tensor in self.tensors.items():  # Memory of its own for each, in its own order.
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
    """Of all records in the archive, the byte where they begin and their size.

    Raises:
        ValueError: If one is compressed: torch writes them as they are, and their elements are read so.
    """
    reader = torch._C.PyTorchFileReader(str(path))
    with zipfile.ZipFile(path) as archive:
        infos = {info.filename.partition('/')[2]: info for info in archive.infolist()}
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos.values()):
        raise ValueError(f'{printable(path)} is compressed; if torch.load reads it, torch.save it again')
    return {reader.get_record_offset(name): info.file_size for name, info in infos.items() if name.startswith('data/')}


def _stored(path: Path, name: str, fake: Tensor, records: dict[int, int]) -> StoredTensor:
    storage = fake.untyped_storage()
    last = sum((size - 1) * stride for size, stride in zip(fake.shape, fake.stride())) if fake.numel() else -1
    end = (fake.storage_offset() + last + 1) * fake.itemsize
    room = records.get(storage._checkpoint_offset, 0)
    if min(fake.storage_offset(), *fake.stride(), 0) < 0 or end > room or fake.nbytes > LARGEST_EXPANSION * (room + 1):
        raise ValueError(f'{printable(path)}: {shown(name)} reaches beyond its place in the file: it is damaged')
    start = storage._checkpoint_offset + fake.storage_offset() * fake.itemsize
    like = torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device='meta')
    return StoredTensor(path, start, like)
