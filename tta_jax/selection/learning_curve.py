"""What more labels would change: the learning curve, continued."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

_POWERS = np.array([0.25, 0.35, 0.5, 0.7, 1.0, 1.4])
_DRAWS = 1000
LEAST_POINTS = 3


def extrapolate(
    learned: Sequence[int],
    values: Sequence[float] | np.ndarray,
    errors: Sequence[float] | np.ndarray,
    wanted: Sequence[int],
    level: float,
    rng: np.random.Generator,
) -> Float[np.ndarray, "m 3"] | None:
    """Continue `a + b n^-c` with a, b at least 0 through what was measured.

    The power is averaged over: values are drawn anew with their errors, each draw is
    fitted with the power that serves it best, and the percentiles of what the fits say
    are the interval. It holds as far as the curve has that form.

    Args:
      learned: numbers of items learned from.
      values: losses, or shares of errors, there.
      errors: their standard errors.
      wanted: numbers of items to say it for.
      level: of the interval.
      rng: draws.

    Returns:
      Middle, lower and upper value for each of `wanted`; None where there are fewer
      than three points.
    """
    n, y, error = (np.asarray(v, float) for v in (learned, values, errors))
    if len(n) < LEAST_POINTS:
        return None
    weight = 1 / np.maximum(error, 1e-9)
    drawn = np.maximum(y + error * rng.standard_normal((_DRAWS, len(y))), 0.0)
    drawn[0] = y
    best = np.full(_DRAWS, np.inf)
    said = np.zeros((_DRAWS, len(wanted)))
    for power in _POWERS:
        x, far = (np.asarray(v, float) ** -power for v in (n, wanted))
        level_, slope, misfit = _fit(x, drawn, weight)
        better = misfit < best
        best = np.where(better, misfit, best)
        line = level_[:, None] + slope[:, None] * far[None]
        said = np.where(better[:, None], line, said)
    ends = 50 * (1 - level), 50 * (1 + level)
    return np.stack(
        [said[0], *(np.percentile(said, end, axis=0) for end in ends)], axis=1
    )


def _fit(
    x: np.ndarray, y: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least squares of rows of y on `a + b x` with a, b at least 0: a, b and the sum of
    squares, for each row.
    """
    w = weight**2 / (weight**2).sum()
    mean_x, mean_y = w @ x, y @ w
    spread = w @ (x - mean_x) ** 2
    slope = ((y - mean_y[:, None]) * (x - mean_x)) @ w / spread
    # Where one of the two would be negative, the best line has it at 0.
    through = np.maximum(y @ (w * x) / (w @ x**2), 0.0)
    level = mean_y - slope * mean_x
    slope, level = (
        np.where(slope < 0, 0.0, np.where(level < 0, through, slope)),
        np.where(slope < 0, mean_y, np.maximum(level, 0.0)),
    )
    off = y - level[:, None] - slope[:, None] * x
    return level, slope, off**2 @ w
