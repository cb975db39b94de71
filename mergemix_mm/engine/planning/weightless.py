"""Builds the model of a config at its full size without weights, on the meta device, and counts its parameters."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from mmengine.utils import get_object_from_string
from torch import nn
from torch.overrides import TorchFunctionMode

from ...models.tuners import BaseTuner
from ...models.vlms.adapting import part_of
from ...models.vlms.hf import loading
from ...models.vlms.hf.loading import parse_dtype
from ...models.vlms.sphinx.files import CONFIG_FILE, LANGUAGE_MODEL, is_sphinx, read_layout
from ...utils.text import quoted, shown
from .four_bits import FourBitLinear, pack

FROM_PRETRAINED = '.from_pretrained'
# Names of hub models and folders -> the content of their config.json. The empty name stands for whatever model
# `pretrained` names, be it the vision-language model or its language model.
HubConfigs = Mapping[str, dict]
ANY = ''
# Parameters that belong to no part that ``trainable`` knows: they never train.
REST = 'frozen'


class HubConfigError(ValueError):
    """The config.json of a model that a config names does not exist, or cannot be read."""


def build_weightless(model: dict, hub_configs: HubConfigs | None = None) -> nn.Module:
    """Build a model without reading or drawing weights, in seconds and without memory for them.

    The model is as `MODELS.build` makes it (freezing, LoRA, dtypes, weights that a tuner keeps in float32), except that
    parameters have no values, and that the processor is left out. Of models on the hub and in folders only the config
    is read.

    Args:
        model (dict): ``cfg.model``; not changed.
        hub_configs (Mapping, optional): Name of a model in the config -> the content of its config.json, as
            `read_hub_configs` returns it. Defaults to None: each config is read from the hub or folder of that name.

    Raises:
        HubConfigError: If the config of a model cannot be found.
        ValueError: If the model cannot be built.
    """
    model = {key: value for key, value in _plain(model).items() if key != 'processor'}
    model = _Stripper(dict(hub_configs or {})).strip(model)
    # Encoders of mixers initialise their weights when they are built, which the meta device does not support.
    drawing = mock.patch.object(BaseModule, 'init_weights', lambda _: None)
    packing = mock.patch.object(loading, 'refuse_random', pack)
    with torch.device('meta'), _GivenValues(), drawing, packing:
        return MODELS.build(ConfigDict(model))


def read_hub_configs(arguments: Iterable[str]) -> dict[str, dict]:
    """Read configs of models that cannot be downloaded.

    Args:
        arguments (Iterable[str]): ``NAME=SOURCE`` for the model of that name in a config, or ``SOURCE`` for the model
            of its ``pretrained``. A source is a config.json, a folder that has one, a name on the hub, or a JSON file
            that maps names to configs.

    Raises:
        HubConfigError: If a source cannot be read.
    """
    found = {}
    for argument in arguments:
        name, named, source = argument.rpartition('=')
        content = _read_source(source)
        if 'model_type' in content or named:
            found[name if named else ANY] = _checked(content, source)
        else:
            found.update({key: _checked(value, f'{source}: {key}') for key, value in content.items()})
    return found


class _GivenValues(TorchFunctionMode):
    """Makes tensors that are not weights on the CPU even so: constructors look at their values."""

    _VALUES = (torch.tensor, torch.as_tensor, torch.arange, torch.linspace)
    _FILLED = (torch.zeros, torch.ones, torch.full, torch.empty)

    def __torch_function__(self, function: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None):
        kwargs = dict(kwargs or {})
        dtype = kwargs.get('dtype')
        # Vocabulary mappings and positions are integers, masks are bool; weights are floating.
        exact = dtype in (int, bool) or (isinstance(dtype, torch.dtype) and not dtype.is_floating_point)
        if kwargs.get('device') is None and (function in self._VALUES or (function in self._FILLED and exact)):
            kwargs['device'] = 'cpu'
        return function(*args, **kwargs)


class _Stripper:
    """Replaces weights by the config of their model, wherever a config names them."""

    def __init__(self, hub_configs: dict) -> None:
        self.hub_configs = hub_configs

    def strip(self, part):
        """A copy of a part of a config, without weights."""
        if isinstance(part, list | tuple):
            return type(part)(self.strip(entry) for entry in part)
        if not isinstance(part, dict):
            return part
        part = dict(part)
        kind, pretrained = part.get('type'), part.get('pretrained')
        if isinstance(kind, str) and kind.endswith(FROM_PRETRAINED) and 'pretrained_model_name_or_path' in part:
            return self._bare(part)
        if (part.get('init_cfg') or {}) and _is_pretrained(part['init_cfg']):
            part['init_cfg'] = None
        if pretrained is True:  # Of timm.
            part['pretrained'] = False
        elif isinstance(pretrained, str) and str(kind).endswith('SphinxModel'):
            self._strip_sphinx(part)
        elif isinstance(pretrained, str):
            part['config'] = self.find(part.pop('pretrained'), main=True)
        elif isinstance(part.get('config'), str):
            part['config'] = self.find(part['config'], main=True)
        return {key: value if key == 'config' else self.strip(value) for key, value in part.items()}

    def _bare(self, part: dict) -> dict:
        """Instead of a ``from_pretrained`` of transformers: the class with its config."""
        config = self.find(part['pretrained_model_name_or_path'])
        dtype = part.get('dtype', part.get('torch_dtype'))
        # Not under the name `config`: builders make configs of transformers from that.
        return dict(type=_make_bare, class_name=part['type'].removesuffix(FROM_PRETRAINED), sizes=config, dtype=dtype)

    def _strip_sphinx(self, part: dict) -> None:
        folder = part.pop('pretrained')
        given = {key: value for key, value in part.items() if value is not None}
        if any(name not in given for name in ('backbone', 'neck', 'image_token_id')) and is_sphinx(folder):
            part.update(read_layout(folder, bool(part.get('trust_remote_code'))) | given)
        if given.get('language_model') is None:
            inner = (
                str(Path(folder, LANGUAGE_MODEL)) if is_sphinx(folder) and folder not in self.hub_configs else folder
            )
            part['language_model'] = dict(config=self.find(inner, main=True))

    def find(self, name: str, main: bool = False) -> dict:
        """The content of a model's config.json; an unnamed config of the user is for the `main` one."""
        if name in self.hub_configs:
            return self.hub_configs[name]
        if main and ANY in self.hub_configs:
            return self.hub_configs[ANY]
        return _checked(_read_source(name), name)


def _read_source(source: str) -> dict:
    file = Path(source, CONFIG_FILE) if Path(source).is_dir() else Path(source)
    if file.is_file():
        try:
            content = json.loads(file.read_text(encoding='utf-8'))
        except (OSError, ValueError, RecursionError) as error:
            raise HubConfigError(f'{shown(str(file))} is not a JSON file: {shown(str(error), 200)}') from None
        if not isinstance(content, dict):
            raise HubConfigError(f'{shown(str(file))} is not the config of a model: {quoted(content, 100)}')
        return content
    from transformers import PretrainedConfig

    try:
        return PretrainedConfig.get_config_dict(source)[0]
    except Exception as error:
        raise HubConfigError(
            f'{shown(source)} is neither a folder with a {CONFIG_FILE} nor a model whose {CONFIG_FILE} the hub '
            f'gives: pass that file with --hub-config {shown(source)}=FILE.json ({type(error).__name__})'
        ) from None


def _make_bare(class_name: str, sizes: dict, dtype: str | torch.dtype | None = None) -> nn.Module:
    """A model of transformers with the sizes in a config.json, which may be that of a model that contains it."""
    model_class = get_object_from_string(class_name)
    config_class = model_class.config_class
    key = getattr(config_class, 'base_config_key', '')
    model = model_class(config_class.from_dict(sizes.get(key, sizes) if key else sizes))
    return model if dtype is None else model.to(parse_dtype(dtype))


def _is_pretrained(init_cfg) -> bool:
    entries = init_cfg if isinstance(init_cfg, list | tuple) else [init_cfg]
    return any(isinstance(entry, dict) and entry.get('type') == 'Pretrained' for entry in entries)


def _checked(content, source: str) -> dict:
    if not isinstance(content, dict) or not isinstance(content.get('model_type'), str):
        raise HubConfigError(f"{shown(source)} is not the config of a model of transformers: it has no 'model_type'")
    return content


def _plain(part):
    """Configs of MMEngine as plain dicts, lists and tuples."""
    if isinstance(part, dict):
        return {key: _plain(value) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return type(part)(_plain(entry) for entry in part)
    return part


@dataclass
class PartSize:
    """A part of a model.

    Args:
        name (str): ``'language_model'``, ``'backbone'``, ...
        parameters (int): Number of parameters.
        trained (int): Number of those that train.
        bytes (int): Size of all of them.
        dtypes (set[str]): Their dtypes, such as ``{'float32'}``.
    """

    name: str
    parameters: int = 0
    trained: int = 0
    bytes: int = 0
    dtypes: set[str] = field(default_factory=set)


def part_sizes(model: nn.Module) -> list[PartSize]:
    """The parts of a model in the order of its parameters; shared parameters count once.

    The parts of a tuner are those that ``trainable`` knows, and ``frozen``; the parts of other models are their
    children.
    """
    is_tuner = isinstance(model, BaseTuner)
    network = model.vlm.family.model if is_tuner else model
    sizes: dict[str, PartSize] = {}
    layers = [module for module in network.modules() if isinstance(module, FourBitLinear)]
    packed = {id(layer.weight): layer for layer in layers}
    for name, parameter in network.named_parameters():
        layer = packed.get(id(parameter))
        number = parameter.numel() if layer is None else layer.in_features * layer.out_features
        part = (part_of(name, model.vlm.family.parts) or REST) if is_tuner else name.partition('.')[0]
        size = sizes.setdefault(part, PartSize(part))
        size.parameters += number
        size.trained += number * parameter.requires_grad
        size.bytes += parameter.nbytes + (0 if layer is None else sum(scales.nbytes for scales in layer.buffers()))
        size.dtypes.add(str(parameter.dtype).removeprefix('torch.') if layer is None else '4 bits')
    return list(sizes.values())
