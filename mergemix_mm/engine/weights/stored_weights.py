"""The weights of a model on disk: by name in a file or in the shards of a folder, or a whole checkpoint."""

import json
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from torch import Tensor

from ...utils.files import recover_folder
from ...utils.safe_load import load_checkpoint
from ...utils.text import printable, shown
from .files import SafetensorsFile, StoredTensor, TorchFile, once
from .sharded_checkpoint import ShardedCheckpoint, is_sharded

FILE_KINDS: dict[str, type[SafetensorsFile] | type[TorchFile]] = {
    '.safetensors': SafetensorsFile,
    '.pth': TorchFile,
    '.pt': TorchFile,
    '.bin': TorchFile,
}
# Where transformers looks for weights, in the order in which it does.
NAMES = (
    'model.safetensors',
    'model.safetensors.index.json',
    'pytorch_model.bin',
    'pytorch_model.bin.index.json',
)

LONGEST_NAME = 255


class StoredWeights:
    """All tensors of a model by name, without reading them.

    Args:
        path (str | Path): A folder of transformers with safetensors or ``pytorch_model.bin``, sharded or not; or one
            file: safetensors, or a checkpoint of MMEngine or a state dict in ``.pth``, ``.pt`` or ``.bin``.

    Attributes:
        path (Path): As given.
        index (Path | None): The index of the shards.
        files (list[SafetensorsFile | TorchFile]): The files.
        tensors (dict[str, StoredTensor]): All their tensors.

    Raises:
        FileNotFoundError: If the file or folder does not exist, or a shard is missing.
        ValueError: If it is of another kind, is damaged, or holds more than weights and plain values.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.index = Path(path), None
        recover_folder(self.path)  # A killed program may have left it between its two renames.
        if is_sharded(self.path):
            raise ValueError(
                f'{self.path} is the checkpoint of a sharded run (FSDP2Strategy); name the folder that '
                'SavePretrainedHook wrote, or make one by tools/model_converters/save_pretrained.py'
            )
        if self.path.is_dir():
            found = self._find_weights()
            self.index = found if found.suffix == '.json' else None
            shards = _read_index(found) if self.index else {}
            paths = sorted(set(shards.values())) or [found]
        elif self.path.is_file():
            paths = [self.path]
        else:
            raise FileNotFoundError(f'there is no file or folder {self.path}')
        self.files = [_open(file) for file in paths]
        self.tensors: dict[str, StoredTensor] = {}
        for file in self.files:
            twice = sorted(self.tensors.keys() & file.tensors.keys())
            if twice:
                raise ValueError(
                    f'{printable(file.path)} holds tensors that another shard holds as well: {_listed(twice)}'
                )
            self.tensors.update(file.tensors)
        if self.index is not None:
            _check_index(self.index, shards, self.files)

    def place(self, file: SafetensorsFile | TorchFile) -> Path:
        """The path of one of `files` relative to the folder; its name, if the model is one file."""
        return file.path.relative_to(self.path) if self.path.is_dir() else Path(file.path.name)

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def versions(self) -> dict | None:
        """Versions of the modules, which ``load_state_dict`` reads; None for safetensors."""
        return self.files[0].versions

    def _find_weights(self) -> Path:
        for name in NAMES:
            if (self.path / name).is_file():
                return self.path / name
        found = sorted(path.name for path in self.path.iterdir())
        raise ValueError(
            f'{printable(self.path)} holds none of {", ".join(NAMES)} (but: {_listed(found)}). Name the folder of a '
            'whole model, or one file; merge adapters of LoRA into their model first'
        )


def _read_index(index: Path) -> dict[str, Path]:
    """The shard of every tensor.

    Raises:
        FileNotFoundError: If a shard does not exist.
        ValueError: If this is not an index, or a shard lies outside of its folder.
    """
    try:
        shards = json.loads(index.read_text(encoding='utf-8'), object_pairs_hook=once)['weight_map']
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()) or not shards:
            raise TypeError('its weight_map does not name a file for each tensor')
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f'{printable(index)} is not an index of shards: {shown(repr(error), 200)}') from None
    paths = {name: _shard(index, name) for name in sorted(set(shards.values()))}
    missing = [name for name, path in paths.items() if not path.is_file()]
    if missing:
        raise FileNotFoundError(f'{printable(index)} names shards that are not there: {_listed(missing)}')
    return {name: paths[shard] for name, shard in shards.items()}


def _shard(index: Path, name: str) -> Path:
    """The path of a shard. It must lie in the folder of the index: a hostile index could name any file."""
    folder, parts = index.parent, PurePosixPath(name).parts
    outside = PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or '..' in parts or '\\' in name
    if outside or not parts or '\0' in name or len(name) > LONGEST_NAME or _is_broken(name):
        raise ValueError(f'{printable(index)} names the shard {shown(name)}, which is not a place in its folder')
    path = folder.joinpath(*parts)
    # The cache of the hub keeps files in `blobs`, and links to them in `snapshots/<revision>`.
    roots = [folder.resolve(), *([folder.resolve().parents[1] / 'blobs'] if folder.parent.name == 'snapshots' else [])]
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError) as error:
        raise ValueError(f'{printable(index)} names the shard {shown(name)}, which cannot be read: {error}') from None
    if not any(resolved.is_relative_to(root) for root in roots):
        raise ValueError(f'{printable(index)} names the shard {shown(name)}, a link to a place outside of its folder')
    return path


def _is_broken(name: str) -> bool:
    """Whether a name holds half of a surrogate pair, which no file name can hold."""
    return any('\ud800' <= character <= '\udfff' for character in name)


def _check_index(index: Path, shards: dict[str, Path], files: list[SafetensorsFile | TorchFile]) -> None:
    """Refuse an index whose tensors are not those of its shards, or are in other shards."""
    found = {name: file.path for file in files for name in file.tensors}
    missing = [name for name, path in shards.items() if found.get(name) != path]
    unlisted = sorted(found.keys() - shards.keys())
    if missing or unlisted:
        raise ValueError(
            f'{printable(index)} and its shards differ: not in the shard that it names are {_listed(missing)}; not in '
            f'the index are {_listed(unlisted)}'
        )


def _listed(names: Sequence[str]) -> str:
    more = f' and {len(names) - 5} more' if len(names) > 5 else ''
    return ', '.join(shown(name, 60) for name in names[:5]) + more if names else 'none'


def _open(path: Path) -> SafetensorsFile | TorchFile:
    if path.suffix not in FILE_KINDS:
        raise ValueError(f'{path} is of an unknown kind; name a folder, or a file in {", ".join(FILE_KINDS)}')
    return FILE_KINDS[path.suffix](path)


def read_state_dict(path: str | os.PathLike, trust: bool = False) -> dict[str, Tensor]:
    """Read the weights of a checkpoint, or a state dict, to the CPU; see :func:`read_checkpoint`.

    The folder of a sharded run (`FSDP2Strategy`) is read as well.
    """
    if is_sharded(path):
        return ShardedCheckpoint(path).state_dict(trust)
    return state_dict_of(read_checkpoint(path, trust), path)


def read_checkpoint(path: str | os.PathLike, trust: bool = False) -> Any:
    """Read everything in a checkpoint, to the CPU; :func:`state_dict_of` finds the weights in it.

    Args:
        path (str | os.PathLike): A file of torch.save, or the folder of a sharded run.
        trust (bool): Whether to build objects that can run code. Defaults to False.

    Raises:
        ValueError: If this is neither, or cannot be read; one line that names the file.
    """
    if is_sharded(path):
        return ShardedCheckpoint(path).whole(trust)
    if not Path(path).is_file():
        kind = 'a folder, not a file' if Path(path).is_dir() else 'not a file'
        raise ValueError(f'{shown(path, None)} is {kind}')
    return load_checkpoint(Path(path), trust)


def state_dict_of(content: Any, path: str | os.PathLike, nests: tuple[str, ...] = ('state_dict',)) -> dict[str, Tensor]:
    """Find the weights by name in the content of a file.

    Args:
        content (Any): What was read.
        path (str | os.PathLike): The file, for the error.
        nests (tuple[str, ...]): Keys under which the weights may be, also one inside of the other. Defaults to
            ``('state_dict',)``.

    Raises:
        ValueError: If there are none: it is not a dict, or holds anything but tensors.
    """
    where = ''
    while isinstance(content, dict) and len(found := [key for key in nests if key in content]) == 1:
        where, content = f' under {found[0]!r}', content[found[0]]
    if not isinstance(content, dict):
        raise ValueError(f'{shown(path, None)} holds no weights by name{where}, but a {type(content).__name__}')
    # MMEngine and others write their other entries beside the weights, not among them.
    others = [name for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if others:
        names = ', '.join(shown(repr(name)) for name in others[:5])
        raise ValueError(f'{shown(path, None)} holds entries{where} that are not tensors: {names}')
    if not content:
        raise ValueError(f'{shown(path, None)} holds no weights{where}')
    return content
