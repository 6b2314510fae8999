"""A line through scores and truths, and how sure it is: least squares, bootstrap,
Pearson's correlation. No drawing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tta_jax.evaluation import rank_statistics
from tta_jax.tasks.splits import seed_from_key

_FEWEST_GROUPS = 5  # of which a bootstrap says something


class Line(NamedTuple):
    """A least-squares line `truth = slope * score + intercept` and what a bootstrap
    says of it.

    Attributes:
      slope, intercept: of all points.
      pearson, low, high: the correlation and its percentile interval; NaN where it is
        not defined.
      slopes, intercepts: `(R,)` of the draws; NaN where all points drawn have one
        score.
      interval: level of the intervals.
      drawn: what the bootstrap drew, in words.
      points: how many there are.
    """

    slope: float
    intercept: float
    pearson: float
    low: float
    high: float
    slopes: np.ndarray
    intercepts: np.ndarray
    interval: float
    drawn: str
    points: int

    def band(self, at: Any) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper limit of the line at scores `(m,)`; NaN without draws."""
        lines = (
            self.slopes[:, None] * np.asarray(at, float)[None]
            + self.intercepts[:, None]
        )
        lines = lines[np.isfinite(lines).all(1)]
        if not len(lines):
            return np.full(np.shape(at), np.nan), np.full(np.shape(at), np.nan)
        low, high = np.percentile(
            lines, [50 * (1 - self.interval), 50 * (1 + self.interval)], axis=0
        )
        return low, high

    def words(self) -> str:
        """The correlation with its interval, as a caption says it."""
        span = (
            f", {self.interval:.0%} interval {self.low:.2f} to {self.high:.2f}"
            if np.isfinite(self.low)
            else ""
        )
        return (
            f"Pearson r = {self.pearson:.2f}{span} ({self.points} points; bootstrap "
            f"over {self.drawn})"
        )


def _fits(
    x: np.ndarray, y: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and intercepts `(R,)` with points counting `(R, n)`; NaN where there is no
    slope.
    """
    size = counts.sum(1, keepdims=True)
    mean_x, mean_y = (counts @ v[:, None] / size for v in (x, y))
    across, along = x[None] - mean_x, y[None] - mean_y
    spread = (counts * across**2).sum(1)
    flat = spread <= 1e-12 * np.abs(x).max(initial=0.0) ** 2 * size[:, 0]
    slope = np.where(
        flat, np.nan, (counts * across * along).sum(1) / np.where(flat, 1.0, spread)
    )
    return slope, mean_y[:, 0] - slope * mean_x[:, 0]


def fit_line(
    scores: Any,
    truth: Any,
    groups: Sequence[object] | None = None,
    *,
    replicates: int = 1000,
    interval: float = 0.95,
    key: Any = None,
) -> Line:
    """The least-squares line of `truth` on `scores`, both `(n,)`; pairs with a blank
    are left out.

    The bootstrap draws whole groups (points of one target or encoder are not
    independent) where there are five or more, else points; with a percentile interval
    of so few it errs on the narrow side.

    Raises:
      ValueError: for unequal shapes, fewer than three points, or scores that are all
        the same.
    """
    x, y = np.asarray(scores, float), np.asarray(truth, float)
    if (
        x.ndim != 1
        or x.shape != y.shape
        or (groups is not None and len(groups) != len(x))
    ):
        raise ValueError(
            f"scores: found shapes {x.shape} and {y.shape}; give one score, truth and "
            "group for each point"
        )
    there = np.isfinite(x) & np.isfinite(y)
    members = (
        None
        if groups is None
        else [group for group, known in zip(groups, there, strict=True) if known]
    )
    x, y = x[there], y[there]
    if len(x) < 3 or x.min() == x.max():
        raise ValueError(
            "scores: a line needs three points of different scores; found "
            f"{len(np.unique(x))}"
        )
    number = rank_statistics.check_options("both", replicates, interval)
    seed = seed_from_key(jax.random.key(0) if key is None else key)
    names = list(dict.fromkeys(members or []))
    if members is not None and len(names) >= _FEWEST_GROUPS:
        of = np.array([names.index(group) for group in members])
        counts, drawn = (
            rank_statistics.draw((1, len(names)), "models", number, seed).models[:, of],
            f"{len(names)} groups",
        )
    else:
        counts, drawn = (
            rank_statistics.draw((1, len(x)), "models", number, seed).models,
            "points",
        )
    # Centred at once, so that large scores of little spread keep their digits.
    centre = x.mean()
    slope, intercept = _fits(x - centre, y, np.ones((1, len(x))))
    slopes, intercepts = _fits(x - centre, y, counts)
    found = rank_statistics.STATISTICS["pearson"](x, y, counts)
    found = found[np.isfinite(found)]
    low, high = (
        np.percentile(found, [50 * (1 - interval), 50 * (1 + interval)])
        if len(found)
        else (np.nan, np.nan)
    )
    return Line(
        float(slope[0]),
        float(intercept[0] - slope[0] * centre),
        float(rank_statistics.STATISTICS["pearson"](x, y)),
        float(low),
        float(high),
        slopes,
        intercepts - slopes * centre,
        interval,
        drawn,
        len(x),
    )
