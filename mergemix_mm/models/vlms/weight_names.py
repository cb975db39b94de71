"""Weights under the names of either version of transformers: what was saved under one is loaded under the other.

Version 5 took the wrapper off CLIP's and SigLIP's vision models, and renamed parts of DINOv2, DINOv3 and ViT; one
weight of DINOv2's SwiGLU became two. ``tests/transformers_versions/weight_names.json`` holds the names of both.
Modules that ``torch.compile`` wrapped have their weights under one more name.
"""

import re
from collections.abc import Iterable
from importlib.metadata import version
from itertools import chain

import torch
from torch import Tensor, nn

# Parts of names that differ between the versions, and one common form. Neither version uses the form as a name.
COMMON = tuple(
    (re.compile(pattern), form)
    for pattern, form in (
        (r'(^|\.)_orig_mod\.', r'\1'),
        (r'(^|\.)(?:vision_model\.)+(?=(?:embeddings|pre_layrnorm|encoder|post_layernorm|head)\.)', r'\1'),
        (r'(^|\.)(?:(?:encoder|model)\.)*layers?\.(?=\d+\.)', r'\1layer.'),
        (r'\.attention\.attention\.([qkv])(?:uery|ey|alue)\.', r'.attention.\1_proj.'),
        (r'\.attention\.output\.dense\.', '.attention.o_proj.'),
        (r'(\.\d+)\.intermediate\.dense\.', r'\1.mlp.fc1.'),
        (r'(\.\d+)\.output\.dense\.', r'\1.mlp.fc2.'),
        (r'\.mlp\.weights_out\.', '.mlp.down_proj.'),
    )
)
# Vision models with a wrapper in version 4, and the parts inside of it.
WRAPPED = ('CLIPVisionModel', 'CLIPVisionModelWithProjection', 'SiglipVisionModel')
WRAPPER_PARTS = r'(?=(?:embeddings|pre_layrnorm|encoder|post_layernorm|head)\.)'
# Models that name such a tower `vision_model`. Other modules of this name had no wrapper in version 4.
NAMES_TOWER = ('DeepseekVLModel',)
# The weight of version 4 whose rows are those of two weights of version 5.
WHOLE, HALVES = '.mlp.weights_in.', ('.mlp.gate_proj.', '.mlp.up_proj.')


def adopt_names(module: nn.Module, state_dict: dict[str, Tensor], prefix: str = '') -> None:
    """Rename weights that another version of transformers wrote to the names of this one, in place.

    Args:
        module (nn.Module): The module that will load them.
        state_dict (dict[str, Tensor]): Names of the module with `prefix` in front of them, and possibly others.
        prefix (str): Defaults to ``''``.
    """
    named = chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
    rename({f'{prefix}{name}' for name, _ in named}, state_dict, prefix)


def rename(own: set[str], state_dict: dict[str, Tensor], prefix: str = '') -> None:
    """Rename weights that another version of transformers wrote to those of this one, in place.

    A name is changed only if it is not among this version's, and exactly one of these is without a value and matches
    it. The loader reports what else is missing or unknown.

    Args:
        own (set[str]): Names of this version.
        state_dict (dict[str, Tensor]): What was written.
        prefix (str): Names without it stay as they are. Defaults to ``''``.
    """
    unknown = [name for name in state_dict if name.startswith(prefix) and name not in own]
    if not unknown:
        return
    _join_or_split(state_dict, unknown, own)
    missing = _by_form(own - state_dict.keys(), prefix)
    left = _by_form([name for name in unknown if name in state_dict], prefix)
    for form, names in left.items():
        if len(names) == len(missing.get(form, ())) == 1:
            state_dict[missing[form][0]] = state_dict.pop(names[0])


def _by_form(names: Iterable[str], prefix: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        form = f'.{name.removeprefix(prefix)}'
        for pattern, replacement in COMMON:
            form = pattern.sub(replacement, form)
        found.setdefault(form, []).append(name)
    return found


def _join_or_split(state_dict: dict[str, Tensor], unknown: list[str], own: set[str]) -> None:
    """Make the weight of one version out of the two of the other."""
    first, second = HALVES
    for name in unknown:
        if WHOLE in name and name.replace(WHOLE, first) in own:
            halves = state_dict.pop(name).chunk(2)
            state_dict.update(zip((name.replace(WHOLE, half) for half in HALVES), halves))
        elif first in name and name.replace(first, WHOLE) in own and name.replace(first, second) in state_dict:
            parts = state_dict.pop(name), state_dict.pop(name.replace(first, second))
            state_dict[name.replace(first, WHOLE)] = torch.cat(parts)


def old_options(kind: object) -> dict:
    """Options by which transformers 4 reads a tower that version 5 wrote without its wrapper.

    Args:
        kind (object): What a config has as ``type``. The options are empty for anything except
            ``'transformers.X.from_pretrained'`` with such a tower X.
    """
    wrapped = {f'transformers.{name}.from_pretrained' for name in WRAPPED}
    if kind not in wrapped or _version() > 4:
        return {}
    return dict(key_mapping={rf'^{WRAPPER_PARTS}': 'vision_model.'})


def with_wrapper(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under names that both versions read: those of version 4, whose wrapper version 5 takes off.

    Args:
        model (nn.Module): Of either version.
        weights (dict[str, Tensor]): Of the model.
    """

    def had_wrapper(path: str) -> bool:
        parent, _, name = path.rpartition('.')
        return name != 'vision_model' or type(model.get_submodule(parent)).__name__ in NAMES_TOWER

    towers = [
        f'{path}.'
        for path, module in model.named_modules()
        if type(module).__name__ in WRAPPED and 'vision_model' not in module._modules and had_wrapper(path)
    ]
    for tower in towers:
        for name in [name for name in weights if name.startswith(tower)]:
            inner = name.removeprefix(tower)
            if re.match(WRAPPER_PARTS, inner):
                weights[f'{tower}vision_model.{inner}'] = weights.pop(name)
    return weights


def _version() -> int:
    return int(version('transformers').partition('.')[0])
