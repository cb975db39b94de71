"""Checks of numbers that users set: NaN, infinity, bool and texts are not numbers."""

import math
from numbers import Integral, Real
from typing import Any, cast

from .text import quoted


def is_number(
    value: Any,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    integer: bool = False,
) -> bool:
    """Whether a value is a finite number, not a bool, with ``least <= value <= most`` and ``above < value < below``.

    Args:
        value (Any): The value.
        least (float): The smallest allowed value. Defaults to no limit.
        most (float): The largest allowed value. Defaults to no limit.
        above (float): The value must be larger. Defaults to no limit.
        below (float): The value must be smaller. Defaults to no limit.
        integer (bool): Whether it must be of an integer type. Defaults to False.
    """
    # A bool is an int to Python, and `beta=True` is a mistake.
    kind = Integral if integer else Real
    if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value):
        return False
    value = cast(float, value)  # Real numbers compare as floats do, which the type of Real does not say.
    return least <= value <= most and above < value < below


def check_number(where: str, value: Any, allowed: str, **limits) -> None:
    """Refuse a value that is not a number in a range.

    Args:
        where (str): The class and its option, such as ``'SimPOHead: beta'``.
        value (Any): The value.
        allowed (str): The range in words, after "must be".
        **limits: The limits of :func:`is_number`.

    Raises:
        ValueError: If :func:`is_number` is False; one line with the option, the value and the range.
    """
    if not is_number(value, **limits):
        raise ValueError(f'{where}={quoted(value)} must be {allowed}')
