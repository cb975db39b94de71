"""Checkpoints to which every process writes its part: folders of torch.distributed.checkpoint, and a file in each."""

import io
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from torch import Tensor

from ...utils.safe_load import CheckpointError, load_checkpoint
from ...utils.text import one_line, printable, shown

# What a checkpoint holds besides tensors by name: counters, logs, schedules, options of the optimizer.
REST = 'state.pth'
INDEX = '.metadata'
# Names of tensors begin with one of these.
MODEL, OPTIMIZER = 'state_dict.', 'optimizer.'
# In the rest: further names of weights that have several, such as tied embeddings, with the one that is saved.
TIED = 'tied_weights'


def is_sharded(path: str | os.PathLike) -> bool:
    """Whether a path is a folder that :func:`save_sharded` wrote."""
    return Path(path, INDEX).is_file()


def save_sharded(folder: str | Path, tensors: Mapping[str, Tensor], rest: dict) -> None:
    """Write a checkpoint; every process writes its shards. A collective.

    Args:
        folder (str | Path): A folder on a disk that all processes share.
        tensors (Mapping[str, Tensor]): Tensors by name, sharded or whole; the same names on all processes. Of those
            that are whole, such as the statistics of batch norms, the main process' are saved, as without shards.
        rest (dict): What else is saved, of the main process.

    Raises:
        ValueError: If the folder is a remote one.
        OSError: If a process cannot write.
    """
    if '://' in str(folder):
        raise ValueError(
            f'{folder}: the checkpoints of FSDP2Strategy are folders on disks that all processes share; set '
            'default_hooks.checkpoint.out_dir to one, or leave it out'
        )
    # Not at the top: programs that save no shards need not wait for this import.
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        planner = dcp.DefaultSavePlanner(dedup_save_to_lowest_rank=True)
        dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(folder), planner=planner)
    except CheckpointException as error:
        failures = [failure[0] for failure in error.failures.values()]
        raise next((one for one in failures if isinstance(one, OSError)), error) from error
    if is_main_process():
        torch.save(rest, Path(folder, REST))


class ShardedCheckpoint:
    """A folder that :func:`save_sharded` wrote, on any number of processes.

    Reading it runs no code in it.

    Args:
        folder (str | os.PathLike): The folder.

    Attributes:
        tensors (dict[str, Tensor]): The tensors by name, without elements (on the meta device).

    Raises:
        CheckpointError: If its index is damaged, or refers to something other than tensors.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        self.index: Any = self._read_index()
        self.tensors = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype, device='meta')
            for name, entry in self.index.state_dict_metadata.items()
        }

    def rest(self, trust: bool = False) -> dict:
        """What is saved besides tensors."""
        return load_checkpoint(self.folder / REST, trust)

    def load(self, targets: Mapping[str, Tensor], together: bool = True) -> None:
        """Read tensors into given ones of the same shapes, sharded in any way.

        Args:
            targets (Mapping[str, Tensor]): They are written to.
            together (bool): Whether all processes call this, as sharded targets need it. Defaults to True.

        Raises:
            CheckpointError: If a tensor is missing or has another shape.
        """
        missing = [name for name in targets if name not in self.tensors]
        if missing:
            raise CheckpointError(
                f'{printable(self.folder)} lacks {shown(missing[0].partition(".")[2])} ({len(missing)} tensors in all)'
            )
        for name, target in targets.items():
            found = self.tensors[name].shape
            if found != target.shape:
                raise CheckpointError(
                    f'{printable(self.folder)}: {shown(name.partition(".")[2])} has the shape {list(found)}, in the '
                    f'model {list(target.shape)}'
                )
        import torch.distributed.checkpoint as dcp

        # torch would unpickle the index again, without a check.
        reader = dcp.FileSystemReader(self.folder)
        reader.read_metadata = lambda *_, **__: self.index  # type: ignore[method-assign]
        alone = not together or not torch.distributed.is_initialized()
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'torch.distributed is disabled')  # Of one process, which knows it.
            dcp.load(dict(targets), storage_reader=reader, no_dist=alone)

    def state_dict(self, trust: bool = False) -> dict[str, Tensor]:
        """The whole weights of the model, on the CPU; every process may read them by itself."""
        return self._weights(self.rest(trust).get(TIED, {}))

    def whole(self, trust: bool = False) -> dict:
        """What the checkpoint of an unsharded run would hold, on the CPU; every process may read it by itself."""
        content = self.rest(trust)
        content['state_dict'] = self._weights(content.pop(TIED, {}))
        if 'optimizer' in content:
            optimizer = content['optimizer'] = dict(content['optimizer'])
            names = [name for group in optimizer.pop('names') for name in group]
            states = {name: dict(optimizer['state'].get(name, {})) for name in names}
            for full, tensor in self._read(OPTIMIZER).items():
                key, _, name = full.removeprefix(OPTIMIZER).partition('.')
                states[name][key] = tensor
            optimizer['state'] = {index: states[name] for index, name in enumerate(names) if states[name]}
        return content

    def _weights(self, tied: Mapping[str, str]) -> dict[str, Tensor]:
        weights = {name.removeprefix(MODEL): tensor for name, tensor in self._read(MODEL).items()}
        return weights | {name: weights[first] for name, first in tied.items() if first in weights}

    def _read(self, prefix: str) -> dict[str, Tensor]:
        """Whole tensors whose names begin with a prefix."""
        found = {name: like for name, like in self.tensors.items() if name.startswith(prefix)}
        targets = {name: torch.empty(like.shape, dtype=like.dtype) for name, like in found.items()}
        self.load(targets, together=False)
        return targets

    def find_damage(self) -> str | None:
        """What is wrong with the parts, as far as their lengths and checksums tell; None if nothing."""
        for part in self.index.storage_data.values():
            path = self.folder / part.relative_path
            if not path.is_file():
                return f'{path.name} is missing'
            with path.open('rb') as file:
                file.seek(part.offset)
                content = file.read(part.length)
            if len(content) < part.length or not zipfile.is_zipfile(io.BytesIO(content)):
                return f'{path.name} is damaged, or its end is missing'
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                if (damaged := archive.testzip()) is not None:
                    return f'{path.name}: {damaged} in it is damaged'
        return None

    def _read_index(self) -> Any:
        path = self.folder / INDEX
        try:
            with path.open('rb') as file:
                return _checked(_IndexUnpickler(file).load())
        except OSError:
            raise
        except Exception as error:  # A damaged file can raise whatever Python has.
            raise CheckpointError(
                f'{printable(path)} is damaged, or not the index of a sharded checkpoint: {one_line(error, 200)}'
            ) from None


class _Record:
    """Stands for every class of torch in an index, whose own unpickling could change what others share."""

    def __init__(self, *values: Any) -> None:
        self.state: Any = values

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _IndexUnpickler(pickle.Unpickler):
    """Makes records of the fields in an index; nothing else is called."""

    def find_class(self, module: str, name: str) -> Any:
        if module == 'torch' and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        known = ('torch', 'torch.serialization', 'pathlib', 'pathlib._local')
        if module in known or module.startswith('torch.distributed.checkpoint.'):
            return type(name, (_Record,), {})
        raise pickle.UnpicklingError(f'it refers to {module}.{name}')


def _checked(index: _Record) -> Any:
    """An index of tensors, torch's ``Metadata``, from its fields."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

    def size(found: _Record) -> torch.Size:
        (numbers,) = found.state
        return torch.Size(int(number) for number in numbers)

    entries: dict[str, Any] = {}
    parts: dict[Any, Any] = {}
    for name, entry in index.state['state_dict_metadata'].items():
        # An entry without these fields is one of bytes, a pickle that torch would read without any check.
        dtype = entry.state['properties'].state[0]
        if not isinstance(name, str) or not isinstance(dtype, torch.dtype):
            raise ValueError(f'{name!r} of dtype {dtype!r} is not a tensor')
        chunks = [
            ChunkStorageMetadata(size(one.state['offsets']), size(one.state['sizes'])) for one in entry.state['chunks']
        ]
        entries[name] = TensorStorageMetadata(TensorProperties(dtype=dtype), size(entry.state['size']), chunks)
    for key, part in index.state['storage_data'].items():
        path, transforms = part.state['relative_path'], part.state.get('transform_descriptors')
        if not isinstance(path, str) or Path(path).name != path or transforms:
            raise ValueError(f'{path!r} is not a plain file of the folder')
        place = MetadataIndex(key.state['fqn'], size(key.state['offset']), key.state['index'])
        parts[place] = _StorageInfo(path, int(part.state['offset']), int(part.state['length']))
    return Metadata(entries, storage_data=parts)
