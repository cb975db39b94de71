"""The layout of checkpoints that torch.save wrote, without reading their tensors."""

import copy
import zipfile
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.serialization import skip_data

from ...utils.safe_load import load_checkpoint
from .stored_tensor import StoredTensor


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
            self._content = load_checkpoint(path)
        nested = isinstance(self._content, dict) and 'state_dict' in self._content
        self._weights = self._content['state_dict'] if nested else self._content
        if not isinstance(self._weights, dict):
            raise ValueError(f'{path} holds no state dict, but: {type(self._weights).__name__}')
        others = [str(name) for name, value in self._weights.items() if not _is_plain(value)]
        if others:
            raise ValueError(f'{path} holds entries that are no plain tensors: {", ".join(others[:5])}')
        self.path, self.versions = path, getattr(self._weights, '_metadata', None)
        self.tensors = {name: _stored(path, value) for name, value in self._weights.items()}

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


def _stored(path: Path, fake: Tensor) -> StoredTensor:
    start = fake.untyped_storage()._checkpoint_offset + fake.storage_offset() * fake.itemsize
    like = torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device='meta')
    return StoredTensor(path, start, like)
