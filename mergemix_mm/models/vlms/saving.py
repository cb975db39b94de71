"""Folders of models: written whole or not at all, and in the place of a model only."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from ...utils import files

# One of them is in every folder of a model, or of adapters.
MODEL_FILES = {'config.json', 'adapter_config.json'}


def check_replaceable(folder: str | Path) -> None:
    """Refuse to replace what is no model: nobody means a folder of checkpoints to be deleted.

    Raises:
        NotADirectoryError: if `folder` is a file.
        FileExistsError: if it holds files, and no model.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f'{folder} is a file; name a folder to write the model to')
    found = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if found and not MODEL_FILES & set(found):
        raise FileExistsError(
            f'{folder} holds other files than a model ({", ".join(found[:3])} ...), which replacing it would delete; '
            'name a new folder'
        )


@contextmanager
def replaced_folder(folder: str | Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, which takes its place when the block ends without an error.

    Raises:
        NotADirectoryError: if `folder` is a file.
        FileExistsError: if it holds files, and no model.
    """
    check_replaceable(folder)
    with files.replaced_folder(folder) as new:
        yield new


def check_whole(model: nn.Module) -> None:
    """Refuse a model whose weights are spread over processes."""
    names = [name for name, parameter in model.named_parameters() if _is_shard(name, parameter)]
    if names or not any(True for _ in model.parameters()):  # FSDP can take all parameters to a unit outside.
        raise RuntimeError(
            f'the weights are sharded over processes ({", ".join(names[:3])} ...), so no process can write the whole '
            'model. Convert a checkpoint instead: '
            'python tools/model_converters/save_pretrained.py CONFIG CHECKPOINT OUT'
        )


def _is_shard(name: str, parameter: nn.Parameter) -> bool:
    from torch.distributed.tensor import DTensor

    # FSDP2; ZeRO-3; FSDP1 with original parameters and without.
    shard = isinstance(parameter, DTensor) or hasattr(parameter, 'ds_id') or hasattr(parameter, '_fsdp_flattened')
    return shard or '_flat_param' in name
