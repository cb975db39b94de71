"""Which parts of a vision-language model train: freezing, and low-rank adapters (https://arxiv.org/abs/2106.09685)."""

import re
from collections.abc import Collection
from pathlib import Path

from torch import nn

from ...families import Family
from ...utils.text import shown
from ..decoders import is_linear
from .weight_names import rename


def check_trainable(family: Family, trainable: Collection[str]) -> tuple[str, ...]:
    """The names of the parts to train, if the family has them all."""
    if isinstance(trainable, str) or not set(trainable) <= set(family.parts):
        raise ValueError(
            f'trainable={trainable!r} must be a list of parts out of {sorted(family.parts)}; [] freezes all'
        )
    return tuple(trainable)


def freeze(family: Family, trainable: Collection[str]) -> None:
    """Let the parameters of the named parts require gradients, and no others."""
    # named_parameters gives tied weights one of their names. All of these names belong to the same part.
    for name, parameter in family.model.named_parameters():
        parameter.requires_grad_(part_of(name, family.parts) in trainable)


def train_parts(family: Family, trainable: Collection[str], gradient_checkpointing: bool = False) -> None:
    """Put the named parts into train mode and all else into eval mode."""
    family.model.eval()
    for path, part in _by_depth(family.parts):
        module = _submodule(family.model, path)
        if module is not None:
            module.train(part in trainable)
    if gradient_checkpointing:
        # Layers checkpoint in train mode only. A frozen language model after a trainable projector needs it as well,
        # because gradients pass through it. Children of the layers, such as dropout, stay in eval mode.
        for module in family.language_model.modules():
            if getattr(module, 'gradient_checkpointing', False):
                module.training = True


def checkpoint_layers(model: nn.Module) -> None:
    """Have the layers of a model compute their activations again in the backward (non-reentrant).

    Version 5 also makes the embeddings of all parts require gradients, which only reentrant checkpointing needs. A
    frozen tower would then keep all its activations and run a backward for nothing: 2.8 GiB for 8 images of LLaVA-1.5.
    """
    model.gradient_checkpointing_enable({'use_reentrant': False})
    for module in model.modules():  # The transformers model may be a part of this one, as in SPHINX.
        if getattr(module, '_require_grads_hooks', None) or getattr(module, '_require_grads_hook', None):
            module.disable_input_require_grads()


def add_lora(family: Family, trainable: Collection[str], options: dict) -> nn.Module:
    """Put adapters into a family's language model, and freeze everything except them and the other parts that train.

    The layers are replaced inside the transformers model: its own forward runs through them.

    Args:
        family (Family): The family, whose model changes.
        trainable (Collection[str]): Parts that train. The language model does so by its adapters; modules of the
            others train as a whole and are saved with the adapters.
        options (dict): Options of ``peft.LoraConfig``. ``target_modules``, if given, is a list of names of linear
            layers of the language model, or a regular expression on full names; the default is all except the head.

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
    # A projector may lie inside the tower (Qwen's merger): peft saves it with the tower.
    saved = _saved_modules(family.model, _outermost(others))
    config = LoraConfig(target_modules=targets, modules_to_save=saved or None, **options)
    return get_peft_model(family.model, config)


def load_adapters(model: nn.Module, folder: str | Path) -> nn.Module:
    """Put the adapters of a folder into a model of transformers, whichever version of that library wrote them.

    Args:
        model (nn.Module): Their base model; its layers are replaced.
        folder (str | Path): As ``save_pretrained`` wrote it.

    Returns:
        nn.Module: peft's model around the model.

    Raises:
        ValueError: if the weights are not those of such adapters.
    """
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from peft.utils import load_peft_weights

    config = PeftConfig.from_pretrained(str(folder))
    config.modules_to_save = _saved_modules(model, config.modules_to_save or []) or None
    adapted = get_peft_model(model, config)
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


def part_modules(family: Family, part: str) -> list[str]:
    """Dotted names of the modules of a part."""
    return [path for path in family.parts[part] if _submodule(family.model, path) is not None]


def _by_depth(parts: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    """(path, part), a module after the modules that contain it."""
    return sorted(((path, part) for part, paths in parts.items() for path in paths), key=lambda item: len(item[0]))


def part_of(name: str, parts: dict[str, tuple[str, ...]]) -> str | None:
    """The part of a `Family` that a parameter belongs to, by its dotted name; None if it belongs to no part."""
    owner = None
    for path, part in _by_depth(parts):
        if name == path or name.startswith(f'{path}.'):
            owner = part
    return owner


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:  # A parameter, or a part that this model does not have.
        return None


def _targets(family: Family, wanted: Collection[str] | str | None) -> str:
    """A regular expression, because a vision tower has layers of the same names."""
    if isinstance(wanted, str):
        return wanted
    layers = {name.rpartition('.')[2] for name, module in family.language_model.named_modules() if is_linear(module)}
    wanted = layers if wanted is None else set(wanted)
    if not wanted or not wanted <= layers:
        raise ValueError(
            f'lora.target_modules={sorted(wanted)} must be linear layers of the language model, '
            f'which has {sorted(layers)}'
        )
    decoder = family.parts['language_model'][0]
    return rf'{re.escape(decoder)}\..*\.({"|".join(sorted(wanted))})'


def _saved_modules(model: nn.Module, paths: Collection[str]) -> list[str]:
    """Names by which peft finds one module each. It looks for all names that end alike.

    Under transformers 4, the tower ``vision_model`` of DeepSeek-VL only wraps another ``vision_model``.
    """
    names, found = [name for name, _ in model.named_modules()], []
    for path in paths:
        path = path if path in names else path.removesuffix('.vision_model')  # Written under transformers 4.
        inner = [name for name in names if name.startswith(f'{path}.') and name.endswith(path)]
        found.append(inner[0] if inner else path)
    return found


def _outermost(paths: list[str]) -> list[str]:
    return [path for path in paths if not any(path.startswith(f'{other}.') for other in paths)]
