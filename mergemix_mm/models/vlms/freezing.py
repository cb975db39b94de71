"""Decides which parts of a vision-language model train, and keeps the others in eval mode."""

from collections.abc import Collection

from torch import nn

from ...families import Family


def check_trainable(family: Family, trainable: Collection[str]) -> tuple[str, ...]:
    """The names of the parts to train, if the family has them all."""
    if isinstance(trainable, str) or not set(trainable) <= set(family.parts):
        raise ValueError(
            f'trainable={trainable!r} must be a list of parts out of {sorted(family.parts)}; [] freezes all'
        )
    return tuple(trainable)


def freeze(family: Family, trainable: Collection[str]) -> None:
    """Let the parameters of the named parts require gradients, and no others."""
    # Tied weights have one name only in named_parameters; all names are in one part.
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
        # Layers checkpoint in train mode alone, and a frozen language model behind a trainable projector needs it as
        # much. Their children, dropout among them, stay in eval mode.
        for module in family.language_model.modules():
            if getattr(module, 'gradient_checkpointing', False):
                module.training = True


def checkpoint_layers(model: nn.Module) -> None:
    """Have the layers of a model compute their activations again in the backward (non-reentrant).

    Version 5 lets the embeddings of all parts require gradients as well, as the reentrant way needs it. A frozen tower
    would keep all its activations then, and go through a backward for nothing: 2.8 GiB for 8 images of LLaVA-1.5.
    """
    model.gradient_checkpointing_enable({'use_reentrant': False})
    for module in model.modules():  # That of transformers may be a part, as in SPHINX.
        if getattr(module, '_require_grads_hooks', None) or getattr(module, '_require_grads_hook', None):
            module.disable_input_require_grads()


def part_modules(family: Family, part: str) -> list[str]:
    """Dotted names of the modules of a part."""
    return [path for path in family.parts[part] if _submodule(family.model, path) is not None]


def _by_depth(parts: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    """(path, part), what lies inside another behind it."""
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
