"""Which types the config in a model's folder may name: registered modules, and models of transformers and timm."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.registry import MODELS, WEIGHT_INITIALIZERS, Registry
from torch import nn

from ..utils.text import quoted

# A registry imports any dotted name, and any scope before the first dot.
SCOPES = ('mmengine', 'mmpretrain')
# Arguments that run code of the hub, or name a pickle to load.
CODE = {
    'auto_map',
    'checkpoint_path',
    'code_revision',
    'custom_load',
    'kernel_config',
    'pretrained_cfg',
    'pretrained_cfg_overlay',
    'trust_remote_code',
    'use_kernels',
    'weights_only',
}
ATTENTION = ('attn_implementation', '_attn_implementation', '_attn_implementation_internal')
# Arguments that name a model of timm; with "local-dir:" and "hf-hub:" they also load a config and weights.
TIMM_NAMES = ('model_name', 'architecture', 'backbone')
DEEPEST = 50
FLAG = 'trust_remote_code=True (in tools --trust-remote-code)'


def check_parts(parts: dict, source: str, flag: str = FLAG) -> None:
    """Refuse the config of nested parts that came with a folder or a data file if it names more than modules.

    A registry of MMEngine calls any function that ``type`` names with dots. Allowed are

    - modules that this package, MMPretrain, MMEngine, mmcv and the running program registered, by their name;
    - ``transformers.X`` and ``transformers.X.from_pretrained`` of a model X;
    - ``timm.create_model``;

    all of them with plain arguments.

    Args:
        parts (dict): The configs by their keys.
        source (str): Where they come from, for the error.
        flag (str): What switches this check off, for the error. Defaults to the argument and the option of tools.

    Raises:
        ValueError: If something else is named. The message has the key, the value and `flag`.
    """
    for key, found, reason in _refused(parts, '', 0):
        raise ValueError(
            f'{source}: {key}={quoted(found, 100)} is not built, as {reason}. If you trust where it comes from, {flag} '
            'allows it'
        )


def _refused(part: Any, key: str, depth: int, registry_reads: bool = True) -> Iterator[tuple[str, Any, str]]:
    if depth > DEEPEST:
        yield key, part, f'it is nested more than {DEEPEST} deep'
        return
    if isinstance(part, list | tuple):
        for index, item in enumerate(part):
            yield from _refused(item, f'{key}.{index}', depth + 1, registry_reads)
    elif isinstance(part, dict):
        kind = part.get('type')
        if registry_reads and 'type' in part and (reason := _refused_type(kind)):
            yield _join(key, 'type'), kind, reason
        for name, value in part.items():
            yield from _refused_argument(_join(key, name), name, value, part)
            # EncoderBranch makes a config of transformers of this one, which no registry sees.
            foreign = name == 'config' and isinstance(kind, str) and kind.startswith('transformers.')
            yield from _refused(value, _join(key, name), depth + 1, registry_reads and not foreign)


def _join(key: str, name: Any) -> str:
    return f'{key}.{name}' if key else str(name)


def _refused_argument(key: str, name: Any, value: Any, part: dict) -> Iterator[tuple[str, Any, str]]:
    plain = (
        value in (None, False, '', {}) or (name == 'weights_only' and value is True) or _is_weights_of_timm(name, value)
    )
    if name in CODE and not plain:
        yield key, value, 'it can run code that comes with weights'
    if name == 'weights_only' and value is False:
        yield key, value, 'it can run code that comes with weights'
    if name == '_scope_' and value not in SCOPES:
        yield key, value, f'a scope may be one of {", ".join(SCOPES)}'
    if name in ATTENTION and _is_on_hub(value):
        yield key, value, 'it names code on the hub'
    if name in TIMM_NAMES and isinstance(value, str) and ':' in value:
        yield key, value, 'it names a place to load a model from, not a model of timm'


def _is_weights_of_timm(name: str, value: Any) -> bool:
    """Whether an argument of timm names a file of weights and nothing else: timm reads it with ``weights_only``."""
    return name == 'pretrained_cfg_overlay' and isinstance(value, dict) and set(value) == {'file'}


def _refused_type(kind: Any) -> str | None:
    """Why a type is not built; None if it is allowed."""
    if not isinstance(kind, str):
        return 'a type is a text'
    if kind in ('timm.create_model', 'timm.models.create_model') or _is_transformers_model(kind):
        return None
    scope, _, name = kind.rpartition('.')
    if scope in ('', *SCOPES):
        found = _registered(name)
        if found is not None and _is_harmless(found):
            return None
    return (
        'a folder may name registered modules, transformers.X or transformers.X.from_pretrained of a model X, and '
        'timm.create_model only'
    )


def _registered(name: str) -> Any:
    from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS

    registries: tuple[Registry, ...] = (MODELS, MMPRETRAIN_MODELS, WEIGHT_INITIALIZERS)
    for registry in registries:
        registry.import_from_location()
        if name in registry.module_dict:
            return registry.module_dict[name]
    return None


def _is_harmless(found: Any) -> bool:
    """Whether what is registered is a module or an initializer; multimodal models of MMPretrain read pickles."""
    if not isinstance(found, type) or found.__module__.startswith('mmpretrain.models.multimodal'):
        return False
    return issubclass(found, nn.Module) or found in WEIGHT_INITIALIZERS.module_dict.values()


def _is_transformers_model(kind: str) -> bool:
    match = re.fullmatch(r'transformers\.([A-Za-z0-9]+)(\.from_pretrained|\.from_config|\._from_config)?', kind)
    if match is None:
        return False
    import transformers

    found = getattr(transformers, match[1], None)
    if not isinstance(found, type):
        return False
    auto = match[1].startswith(('AutoModel', 'AutoBackbone')) and match[2] is not None
    return auto or issubclass(found, transformers.PreTrainedModel)


def check_attention(config: Any, source: str, flag: str = FLAG) -> None:
    """Refuse a config of transformers that has its attention, or that of a part, loaded as a kernel from the hub.

    Raises:
        ValueError: If it does.
    """
    from transformers import PretrainedConfig

    queue = [('', config)]
    while queue:
        key, part = queue.pop()
        found = getattr(part, '_attn_implementation', None)
        if _is_on_hub(found):
            raise ValueError(
                f'{source}: {_join(key, "attn_implementation")}={quoted(found, 100)} is not loaded, as it names code '
                f'on the hub. If you trust where it comes from, {flag} allows it'
            )
        queue += [(_join(key, name), one) for name, one in vars(part).items() if isinstance(one, PretrainedConfig)]


def _is_on_hub(attention: Any) -> bool:
    return attention is not None and any(mark in str(attention) for mark in '/:@')


def check_adapter(folder: str | Path, flag: str = FLAG) -> None:
    """Refuse adapters of LoRA whose config has peft import a module by its name.

    Raises:
        ValueError: If it does.
    """
    path = Path(folder, 'adapter_config.json')
    content = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}
    found = content.get('megatron_config') if isinstance(content, dict) else None
    if found:
        raise ValueError(
            f'{path}: megatron_config={quoted(found, 100)} is not used, as it imports the module '
            f'{quoted(content.get("megatron_core"), 100)}. If you trust where it comes from, {flag} allows it'
        )
