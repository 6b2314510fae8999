"""Read numbers from untrusted values."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any


def whole_number(value: Any) -> int | None:
    """`value` as an int; None for what is not a whole number: 2.5, nan, text, but also
    True.
    """
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def real_number(value: Any) -> float:
    """`value` as a float; NaN, which no range holds, for what is not a real number:
    text, vectors, but also True.
    """
    if getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan
