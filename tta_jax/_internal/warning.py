"""The warning that data are doubtful."""

from __future__ import annotations

import sys
import warnings


class DataWarning(UserWarning):
    """Data were read in a way that the user should know of."""


def warn_of_data(message: str) -> None:
    """Warn, in the name of the caller of the library."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("tta_jax."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, DataWarning, stacklevel=level)
