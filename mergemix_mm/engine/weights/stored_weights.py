"""The weights of a model on disk, in one file or in the shards of a folder."""

import json
from pathlib import Path

from .safetensors_file import SafetensorsFile
from .stored_tensor import StoredTensor
from .torch_file import TorchFile

FILE_KINDS = {'.safetensors': SafetensorsFile, '.pth': TorchFile, '.pt': TorchFile, '.bin': TorchFile}
# Where transformers looks for weights, in its order.
NAMES = (
    'model.safetensors',
    'model.safetensors.index.json',
    'pytorch_model.bin',
    'pytorch_model.bin.index.json',
)


class StoredWeights:
    """All tensors of a model by name, none of them read.

    Args:
        path (str | Path): A folder of transformers with safetensors or ``pytorch_model.bin``, sharded or not; or one
            file: safetensors, or a checkpoint of MMEngine or a state dict in ``.pth``, ``.pt`` or ``.bin``.

    Attributes:
        path (Path): As given.
        index (Path | None): The index of the shards.
        files (list[SafetensorsFile | TorchFile]): The files.
        tensors (dict[str, StoredTensor]): All their tensors.

    Raises:
        FileNotFoundError: If there is no such file or folder, or a shard is missing.
        ValueError: If it is of another kind, damaged, or a checkpoint that holds more than weights and plain values.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.index = Path(path), None
        if self.path.is_dir():
            found = self._find_weights()
            self.index = found if found.suffix == '.json' else None
            paths = _shards(found) if self.index else [found]
        elif self.path.is_file():
            paths = [self.path]
        else:
            raise FileNotFoundError(f'there is no file or folder {self.path}')
        self.files = [_open(file) for file in paths]
        self.tensors: dict[str, StoredTensor] = {}
        for file in self.files:
            twice = sorted(self.tensors.keys() & file.tensors.keys())
            if twice:
                raise ValueError(f'{file.path} holds tensors that another shard holds as well: {", ".join(twice[:5])}')
            self.tensors.update(file.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def versions(self) -> dict | None:
        """Versions of the modules, which ``load_state_dict`` looks at; safetensors have none."""
        return self.files[0].versions

    def _find_weights(self) -> Path:
        for name in NAMES:
            if (self.path / name).is_file():
                return self.path / name
        found = sorted(path.name for path in self.path.iterdir())
        raise ValueError(
            f'{self.path} holds none of {", ".join(NAMES)} (but: {", ".join(found[:5])}). Name the folder of a whole '
            'model, or one file; adapters of LoRA have to be merged into their model first'
        )


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())['weight_map'].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{index} is no index of shards: {error!r}') from None
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise FileNotFoundError(f'{index} names shards that are not there: {", ".join(missing)}')
    return [index.parent / name for name in names]


def _open(path: Path) -> SafetensorsFile | TorchFile:
    if path.suffix not in FILE_KINDS:
        raise ValueError(f'{path} is of no known kind; name a folder, or a file in {", ".join(FILE_KINDS)}')
    return FILE_KINDS[path.suffix](path)
