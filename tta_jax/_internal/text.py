"""Shorten messages and make values representable in JSON."""

from __future__ import annotations

from typing import Any

import numpy as np


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks; its kind if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def finite(value: Any) -> Any:
    """Nested dictionaries and lists with None for NaN and infinities, for which JSON
    has no word.
    """
    if isinstance(value, dict):
        return {name: finite(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
