"""One check for the numbers that users set: neither NaN nor infinity, no truth value and no text passes for one."""

import math
from numbers import Integral, Real
from typing import Any

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
    """Whether a value is a finite number, no truth value, with ``least <= value <= most``, ``above < value < below``.

    Args:
        value (Any): What a user gave.
        least (float): The smallest value that is allowed. Defaults to none.
        most (float): The largest value that is allowed. Defaults to none.
        above (float): What the value has to exceed. Defaults to nothing.
        below (float): What the value has to stay below. Defaults to nothing.
        integer (bool): Whether it has to be a whole number, of an integer type. Defaults to False.
    """
    kind = Integral if integer else Real
    if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value):
        return False
    return least <= value <= most and above < value < below


def check_number(where: str, value: Any, allowed: str, **limits) -> None:
    """Refuse what is no number in a range.

    Args:
        where (str): Who has which option, such as ``'SimPOHead: beta'``.
        value (Any): What a user gave.
        allowed (str): The range in words, after "must be".
        **limits: Those of :func:`is_number`.

    Raises:
        ValueError: If :func:`is_number` says no; one line with the option, the value and the range.
    """
    if not is_number(value, **limits):
        raise ValueError(f'{where}={quoted(value)} must be {allowed}')
