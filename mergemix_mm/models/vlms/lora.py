"""Low-rank adapters (https://arxiv.org/abs/2106.09685) in the language model, through peft."""

import re
from collections.abc import Collection
from pathlib import Path

from torch import nn

from ...families import Family
from ...utils.text import shown
from .freezing import part_modules
from .weight_names import rename


def add_lora(family: Family, trainable: Collection[str], options: dict) -> nn.Module:
    """Put adapters into a family's language model and freeze all but them and the other parts that train.

    The layers are replaced inside the transformers model: its own forward runs through them.

    Args:
        family (Family): of the model to change.
        trainable (Collection[str]): Parts that train. The language model does so by its adapters; modules of the
            others train as a whole and are saved along.
        options (dict): of ``peft.LoraConfig``. ``target_modules``, if given, is a list of names of linear layers of
            the language model, or a regular expression on full names; the default are all but the head.

    Returns:
        nn.Module: peft's model around the transformers model.

    Raises:
        ValueError: if the language model is not to be trained, or has no such layers.
    """
    if 'language_model' not in trainable:
        raise ValueError(
            f'lora={options!r} trains the language model, but trainable={list(trainable)!r} '
            "freezes it: add 'language_model' or remove lora"
        )
    from peft import LoraConfig, get_peft_model

    options = dict(options)
    targets = _targets(family, options.pop('target_modules', None))
    others = [path for part in trainable if part != 'language_model' for path in part_modules(family, part)]
    config = LoraConfig(target_modules=targets, modules_to_save=_outermost(others) or None, **options)
    return get_peft_model(family.model, config)


def load_adapters(model: nn.Module, folder: str | Path) -> nn.Module:
    """Put the adapters of a folder into a model of transformers, whichever version of that library wrote them.

    Args:
        model (nn.Module): Their base model; its layers are replaced.
        folder (str | Path): As ``save_pretrained`` wrote it.

    Returns:
        nn.Module: peft's model around the model.

    Raises:
        ValueError: if the weights are others than such adapters have.
    """
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from peft.utils import load_peft_weights

    adapted = get_peft_model(model, PeftConfig.from_pretrained(str(folder)))
    weights = load_peft_weights(str(folder), device='cpu')
    own = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    rename(own, weights)
    missing, unknown = sorted(own - weights.keys()), sorted(weights.keys() - own)
    if missing or unknown:
        raise ValueError(
            f'{folder} holds adapters of another model: it lacks {shown(missing[:3])} ({len(missing)} in all) and has '
            f'besides {shown(unknown[:3])} ({len(unknown)})'
        )
    set_peft_model_state_dict(adapted, weights)
    return adapted


def _targets(family: Family, wanted: Collection[str] | str | None) -> str:
    """A regular expression, because a vision tower has layers of the same names."""
    if isinstance(wanted, str):
        return wanted
    layers = {
        name.rpartition('.')[2]
        for name, module in family.language_model.named_modules()
        if isinstance(module, nn.Linear)
    }
    wanted = layers if wanted is None else set(wanted)
    if not wanted or not wanted <= layers:
        raise ValueError(
            f'lora.target_modules={sorted(wanted)} must be linear layers of the language model, '
            f'which has {sorted(layers)}'
        )
    decoder = family.parts['language_model'][0]
    return rf'{re.escape(decoder)}\..*\.({"|".join(sorted(wanted))})'


def _outermost(paths: list[str]) -> list[str]:
    return [path for path in paths if not any(path.startswith(f'{other}.') for other in paths)]
