"""The folder of a trained SPHINX: the language model as transformers writes it, and one file with the other weights."""

import json
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from ....utils.text import quoted, shown
from ...allowed_parts import check_parts
from ..weight_names import adopt_names
from .network import SphinxNetwork

LANGUAGE_MODEL, VISION_FILE, CONFIG_FILE = 'language_model', 'vision.safetensors', 'config.json'
MODEL_TYPE = 'sphinx'
# The arguments of `SphinxModel` that its folder stores.
LAYOUT = ('backbone', 'neck', 'image_token_id', 'grid', 'crop_pool')


def is_sphinx(folder: str | Path) -> bool:
    """Whether a folder is one that `SphinxModel.save_pretrained` wrote."""
    return Path(folder, VISION_FILE).is_file()


def save_vision(network: SphinxNetwork, folder: str | Path, weights: dict[str, Tensor]) -> None:
    """Write all weights except those of the language model and of frozen encoders."""
    from safetensors.torch import save_file

    weights = {name: value.contiguous() for name, value in _vision_weights(network, weights).items()}
    save_file(weights, str(Path(folder, VISION_FILE)), metadata=dict(format='pt'))


def write_layout(layout: dict, folder: str | Path) -> None:
    """Write the arguments of `SphinxModel` that are configs; arguments that are modules cannot be written."""
    content = dict(model_type=MODEL_TYPE)
    for name, value in layout.items():
        # A TypeError means that the part, or an encoder in it, is a module.
        with suppress(TypeError):
            content[name] = json.loads(json.dumps(value))
    Path(folder, CONFIG_FILE).write_text(json.dumps(content, indent=2) + '\n')


def read_layout(folder: str | Path, trust_remote_code: bool = False) -> dict:
    """Read what :func:`write_layout` wrote.

    Args:
        folder (str | Path): The folder.
        trust_remote_code (bool): Whether its parts may be of any type, which can call any function. Defaults to False.

    Raises:
        OSError: If there is no such file, or it is of another model.
        ValueError: If it is damaged, or names a type that a folder may not build.
    """
    path = Path(folder, CONFIG_FILE)
    try:
        content = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f'SphinxModel: {path} is no JSON file: {type(error).__name__}: {error}') from None
    if not isinstance(content, dict) or content.pop('model_type', None) != MODEL_TYPE:
        raise OSError(f'SphinxModel: pretrained={str(folder)!r} is no folder that save_pretrained wrote')
    unknown = sorted(content.keys() - set(LAYOUT))
    if unknown:
        raise ValueError(f'SphinxModel: {path} has unknown keys {unknown[:5]}; allowed are {LAYOUT}')
    numbers = {name: content[name] for name in LAYOUT[2:] if content.get(name) is not None}
    for name, value in numbers.items():
        if type(value) is not int:
            raise ValueError(f'SphinxModel: {path}: {name}={quoted(value)} is no integer')
    if not trust_remote_code:
        check_parts(content, f'SphinxModel: {path}')
    return content


def load_vision(network: SphinxNetwork, folder: str | Path) -> None:
    """Read what :func:`save_vision` wrote into a network of the same parts.

    Raises:
        OSError: If there is no such file.
        ValueError: If its weights are not those of the network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder, VISION_FILE)
    if not path.is_file():
        raise OSError(f'SphinxModel: pretrained={str(folder)!r} has no {VISION_FILE}; name a folder of save_pretrained')
    try:
        found = load_file(str(path))
    except SafetensorError as error:
        raise ValueError(f'SphinxModel: {path} is damaged, or no safetensors file: {error}') from None
    wanted = _vision_weights(network)
    adopt_names(network, found)
    wrong = [name for name in found.keys() & wanted.keys() if found[name].shape != wanted[name].shape]
    missing, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if wrong or missing or unknown:
        raise ValueError(
            f'SphinxModel: {path} is of another model: it lacks {_first(missing)}, has besides {_first(unknown)}, and '
            f'of other shapes {_first(sorted(wrong))}. Backbone (with its frozen flags) and neck must be those of its '
            'config'
        )
    network.load_state_dict(found, strict=False)
    for branch in network.vision.backbone.branches:
        branch.draws_weights &= branch.frozen  # The encoders that train have just got their weights.


def _first(names: list[str]) -> str:
    return shown(names[:5]) + (f' and {len(names) - 5} more' if len(names) > 5 else '')


def frozen_encoders(network: SphinxNetwork) -> tuple[str, ...]:
    """How the names of weights of frozen encoders begin, which come from where the config has them."""
    branches = enumerate(network.vision.backbone.branches)
    return tuple(f'vision.backbone.branches.{index}.' for index, one in branches if one.frozen)


def _vision_weights(network: SphinxNetwork, weights: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    left_out = (f'{LANGUAGE_MODEL}.', *frozen_encoders(network))
    weights = network.state_dict() if weights is None else weights
    return {name: value for name, value in weights.items() if not name.startswith(left_out)}
