"""Pad arrays to a small set of sizes, so that few shapes are compiled."""

from __future__ import annotations

import numpy as np


def pad_length(n: int) -> int:
    """The smallest size of a ladder (16, 32, 64, then four steps an octave) that holds
    n: few shapes, little padding.
    """
    n = int(n)  # NumPy integers have no bit_length everywhere
    if n <= 64:
        return next(s for s in (16, 32, 64) if s >= n)
    return geometric_bucket(n, 4)


def geometric_bucket(n: int, steps: int) -> int:
    """The smallest size that holds n of a geometric ladder with so many steps an
    octave: 1, 2, 4 or 8; exact up to that many.
    """
    if n <= steps:
        return n
    size = (
        1 << (n - 1).bit_length()
    )  # the power of two at or above n, and the steps below it
    return next(
        s
        for s in (size // 2 + size * k // (2 * steps) for k in range(1, steps + 1))
        if s >= n
    )


def pad_rows(values: np.ndarray, size: int) -> np.ndarray:
    return np.pad(values, [(0, size - len(values))] + [(0, 0)] * (values.ndim - 1))
