"""Finds the family of a transformers model by its config's model_type; each module is loaded when it is needed."""

from collections.abc import Callable
from importlib import import_module

from torch import nn

from .base import Family

# model_type of the config -> where its family is, or the family itself (docs/extend/custom_vlm.md).
FAMILIES: dict[str, str | Callable[[nn.Module], Family]] = {
    'emu3': 'emu3.Emu3Family',
    'idefics3': 'smolvlm.SmolVLMFamily',
    'internvl': 'internvl.InternVLFamily',
    'janus': 'janus.JanusFamily',
    'llava': 'llava.LlavaFamily',
    'llava_next': 'llava_next.LlavaNextFamily',
    'paligemma': 'paligemma.PaliGemmaFamily',
    'qwen2_5_vl': 'qwen2_5_vl.Qwen2_5_VLFamily',
    'qwen2_vl': 'qwen2_5_vl.Qwen2_5_VLFamily',
    'smolvlm': 'smolvlm.SmolVLMFamily',
}


def find_family(model_type: str) -> Callable[[nn.Module], Family]:
    """The class that knows models of this type.

    Args:
        model_type (str): ``config.model_type`` of a transformers model.

    Raises:
        ValueError: if there is none.
    """
    if model_type not in FAMILIES:
        raise ValueError(
            f'model_type={model_type!r} is no vision-language model that can be tuned here. Supported are '
            f'{sorted(FAMILIES)}; others need a Family (docs/extend/custom_vlm.md)'
        )
    family = FAMILIES[model_type]
    if not isinstance(family, str):
        return family
    module, name = family.split('.')
    return getattr(import_module(f'.{module}', __package__), name)
