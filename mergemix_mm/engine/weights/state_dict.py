"""The weights in a checkpoint, whatever stands around them."""

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from ...utils.safe_load import load_checkpoint
from ...utils.text import shown


def read_state_dict(path: str | os.PathLike, trust: bool = False) -> dict[str, Tensor]:
    """Read the weights of a checkpoint of MMEngine, or a state dict, to the CPU; see :func:`read_checkpoint`."""
    return state_dict_of(read_checkpoint(path, trust), path)


def read_checkpoint(path: str | os.PathLike, trust: bool = False) -> Any:
    """Read all that a checkpoint holds, to the CPU; :func:`state_dict_of` finds the weights in it.

    Args:
        path (str | os.PathLike): What torch.save wrote.
        trust (bool): Whether objects in it may be built that can run code. Defaults to False.

    Raises:
        ValueError: If this is no file, cannot be read, or (weights) holds none by name; one line that names the file.
    """
    if not Path(path).is_file():
        kind = 'a folder, not a file' if Path(path).is_dir() else 'not a file'
        raise ValueError(f'{shown(path, None)} is {kind}')
    return load_checkpoint(Path(path), trust)


def state_dict_of(content: Any, path: str | os.PathLike, nests: tuple[str, ...] = ('state_dict',)) -> dict[str, Tensor]:
    """The weights by name in what was read from a file.

    Args:
        content (Any): What was read.
        path (str | os.PathLike): From where, for the error.
        nests (tuple[str, ...]): Keys under which the weights may stand, one in the other. Defaults to
            ``('state_dict',)``.

    Raises:
        ValueError: If there are none: it is no dict, or holds anything but tensors.
    """
    where = ''
    while isinstance(content, dict) and len(found := [key for key in nests if key in content]) == 1:
        where, content = f' under {found[0]!r}', content[found[0]]
    if not isinstance(content, dict):
        raise ValueError(f'{shown(path, None)} holds no weights by name{where}, but a {type(content).__name__}')
    # What else MMEngine and others write stands beside the weights, not among them.
    others = [name for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if others:
        names = ', '.join(shown(repr(name)) for name in others[:5])
        raise ValueError(f'{shown(path, None)} holds entries{where} that are no tensors: {names}')
    if not content:
        raise ValueError(f'{shown(path, None)} holds no weights{where}')
    return content
