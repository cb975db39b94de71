"""Linear mixing of the weights of two models, after the weight mix of SPHINX (https://arxiv.org/abs/2311.07575)."""

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

# Floating types that are mixed, and the type in which they are. All other tensors (integers, bool, codes of quantised
# weights) must be equal in both models.
COMPUTED_IN = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}
# Elements at a time. Temporaries stay in the cache of a core, and torch starts no threads for so few elements. Threads
# would wait for each other at every step while other work (the hashing of files) occupies one of their cores.
CHUNK = 1 << 15


def mix_weights(
    real: Mapping[str, Tensor],
    synthetic: Mapping[str, Tensor],
    beta: float,
    include: str | Callable[[str], bool] | None = None,
) -> dict[str, Tensor]:
    """Mix two state dicts: theta = beta * theta_real + (1 - beta) * theta_syn (SPHINX, section 3.1).

    Args:
        real (Mapping[str, Tensor]): State dict of the model that was trained on real data.
        synthetic (Mapping[str, Tensor]): That of the model of synthetic data: same names, shapes and dtypes.
        beta (float): The weight of `real`, in [0, 1]. 1 gives `real` and 0 gives `synthetic`, bit by bit.
        include (str | Callable, optional): Names to mix: a regular expression that is searched in a name, or a function
            of the name. Tensors of other names are those of `real`, whatever `synthetic` holds. Defaults to None: all.

    Returns:
        dict[str, Tensor]: New tensors with the names, their order, the dtypes and the devices of `real`. Tensors
        that are not floating are those of `real`. Tied tensors come out equal, each in memory of its own.

    Raises:
        ValueError: If `beta` is outside [0, 1], `include` selects nothing, or the two cannot be mixed: the error names
            every tensor that only one of them has, or whose shape or dtype differs, or that is not floating and has
            other values.
    """
    check_beta(beta)
    included = name_filter(include)
    problems = mix_problems(real, synthetic, included)
    if problems:
        raise ValueError(f'{describe(problems)}\nNames that `include` leaves out are taken from real.')
    mixed = OrderedDict()
    for name, tensor in real.items():
        if is_mixed(name, tensor, included):
            mixed[name] = mix_tensors(tensor, synthetic[name], beta)
        else:
            mixed[name] = tensor.detach().clone()
    if hasattr(real, '_metadata'):  # Versions of the modules, which load_state_dict looks at.
        mixed._metadata = real._metadata  # type: ignore[attr-defined]  # torch sets it on its state dicts as well
    return mixed


@torch.no_grad()
def mix_tensors(real: Tensor, synthetic: Tensor, beta: float) -> Tensor:
    """beta * real + (1 - beta) * synthetic, computed in float32 (float64 for float64) and rounded once.

    Args:
        real (Tensor): Any shape; float16, bfloat16, float32 or float64.
        synthetic (Tensor): The same shape and dtype.
        beta (float): In [0, 1]. 1 gives `real` and 0 gives `synthetic`, bit by bit; equal numbers stay equal.

    Returns:
        Tensor: A new tensor on the device of `real`. Temporaries take less than a megabyte.

    Raises:
        ValueError: If `beta` is outside [0, 1], or shapes or dtypes do not fit.
    """
    check_beta(beta)
    if real.shape != synthetic.shape or real.dtype != synthetic.dtype or real.dtype not in COMPUTED_IN:
        raise ValueError(
            f'cannot mix {_kind(real)} with {_kind(synthetic)}: give two of one shape and one of the dtypes '
            f'{", ".join(map(str, COMPUTED_IN))}'
        )
    if beta in (0, 1):
        return (real if beta else synthetic).detach().to(real.device, copy=True)
    wide = COMPUTED_IN[real.dtype]
    mixed = torch.empty_like(real, memory_format=torch.contiguous_format)
    chunks = (tensor.reshape(-1).split(CHUNK) for tensor in (mixed, real, synthetic))
    for out, own, other in zip(*chunks):
        # lerp keeps numbers that are equal in both; a weighted sum would round them.
        out.copy_(torch.lerp(other.to(out.device, wide), own.to(wide), beta))
    return mixed


def check_beta(beta: float) -> None:
    """Refuse a beta that extrapolates.

    Raises:
        ValueError: If `beta` is outside [0, 1].
    """
    if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 <= beta <= 1:
        raise ValueError(f'beta={beta!r} must be in [0, 1]: 1 takes only real, 0 only synthetic')


def name_filter(
    include: str | Callable[[str], bool] | None = None, exclude: str | None = None
) -> Callable[[str], bool]:
    """A function that says of a name whether it is mixed: `include` is found in it, and `exclude` is not.

    Args:
        include (str | Callable, optional): A regular expression, or the function itself. Defaults to None: all.
        exclude (str, optional): A regular expression. Defaults to None: nothing.

    Raises:
        ValueError: If one is not a regular expression.
    """
    patterns = {}
    for key, pattern in dict(include=include, exclude=exclude).items():
        try:
            patterns[key] = re.compile(pattern).search if isinstance(pattern, str) else pattern
        except re.error as error:
            raise ValueError(f'{key}={pattern!r} is not a regular expression: {error}') from None
    wanted, unwanted = patterns['include'], patterns['exclude']
    return lambda name: (wanted is None or bool(wanted(name))) and (unwanted is None or not unwanted(name))


def is_mixed(name: str, tensor: Any, included: Callable[[str], bool]) -> bool:
    """Whether a tensor is mixed. If not, the result has that of the real model."""
    return tensor.dtype in COMPUTED_IN and included(name)


def mix_problems(
    real: Mapping[str, Any],
    synthetic: Mapping[str, Any],
    included: Callable[[str], bool],
    read: Callable[..., Tensor] = lambda tensor: tensor,
) -> list[str]:
    """Everything that prevents mixing two models, one line each; empty if they can be mixed.

    Args:
        real (Mapping[str, Tensor]): Tensors by name, or what stands for them: anything with a shape and a dtype.
        synthetic (Mapping[str, Tensor]): The same.
        included (Callable): Says of a name whether it is mixed. Other names are ignored.
        read (Callable): Gives the tensor of a value whose elements have to be compared. Defaults to the value itself.
    """
    if not any(map(included, real)):
        return [f'none of the {len(real)} names is to be mixed (the first: {", ".join(list(real)[:3])})']
    problems = [f'{name}: only in synthetic' for name in synthetic if included(name) and name not in real]
    for name in filter(included, real):
        if name not in synthetic:
            problems.append(f'{name}: only in real')
        elif _kind(real[name]) != _kind(synthetic[name]):
            problems.append(f'{name}: {_kind(real[name])} in real, {_kind(synthetic[name])} in synthetic')
        elif real[name].dtype not in COMPUTED_IN and not _same(read(real[name]), read(synthetic[name])):
            problems.append(f'{name}: {_kind(real[name])}, which is not mixed and must be equal, differs')
    return problems


def describe(problems: list[str]) -> str:
    """The text of an error that lists all problems."""
    return '\n  '.join([f'the weights cannot be mixed ({len(problems)} problems):', *problems])


def _kind(tensor: Tensor) -> str:
    return f'{str(tensor.dtype).removeprefix("torch.")} {list(tensor.shape)}'


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether all bits are equal. Not every dtype (float8, quantised) has a comparison, so bytes are compared."""
    a, b = (tensor.detach().contiguous().view(-1).view(torch.uint8) for tensor in (a, b))
    return torch.equal(a, b.to(a.device))
