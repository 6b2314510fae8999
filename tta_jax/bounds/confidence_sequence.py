"""Bounds of a running mean that hold at all times at once, so that looking often costs
nothing (docs/theory.md, section 6.3).
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

# Bets in units of the largest deviation, between which the sequence averages: small
# ones serve many values of little variance, large ones few values.
_BETS = np.geomspace(0.02, 0.9, 10)
# How far from 0 a value may be expected beforehand, as a share of its bound.
_FARTHEST = 0.1


def upper_running_mean(
    values: Float[np.ndarray, " n"],
    bound: float,
    delta: float,
    sizes: Float[np.ndarray, " n"] | None = None,
) -> float:
    """Bound the mean of the conditional means of values, from above.

    Each value is seen after those before it. With probability `1 - delta` the mean of
    the values' means given the past is below this bound after every number of values
    at once: it may be computed after each one and acted upon. The means may differ
    and may depend on the past, as those of a classifier do that goes on learning.

    With `z_i` the value less a guess from the values before, `c` the largest size of
    `z_i` and `S` the sum of the values less their means, `exp(-b S / c - V psi(b))`
    with `V = sum z_i^2 / c^2` and `psi(b) = -log(1 - b) - b` has mean 1 at most at all
    times (Howard, Ramdas, McAuliffe and Sekhon 2021, theorem 4). So has its average
    over several bets b, and by Ville's inequality it reaches `1 / delta` with
    probability `delta` at most.

    Args:
      values: in the order in which they were seen, in `[-bound, bound]` times the
        sizes.
      bound: positive.
      delta: probability with which the bound may ever be too low.
      sizes: how many items each value is a sum of, known beforehand; the bound is one
        of the mean per item. One each when None.

    Returns:
      At most `bound`; that without values.
    """
    values = np.asarray(values, float)
    count = np.ones(len(values)) if sizes is None else np.asarray(sizes, float)
    if not values.size:
        return bound
    number, total = np.cumsum(count), np.cumsum(values)
    before = np.r_[0.0, total[:-1]] / np.maximum(np.r_[0.0, number[:-1]], 1.0)
    limit = _FARTHEST * bound
    guess = np.clip(before, -limit, limit) * count
    largest = (bound + limit) * count.max()
    spread = np.sum((values - guess) ** 2) / largest**2
    logs = -spread * (-np.log1p(-_BETS) - _BETS) - math.log(len(_BETS))

    def wealth(mean: float) -> float:
        terms = logs + _BETS * (mean * number[-1] - total[-1]) / largest
        top = terms.max()
        return top + math.log(np.exp(terms - top).sum())

    low, high = float(total[-1] / number[-1]), bound
    if wealth(high) < math.log(1 / delta):
        return bound
    for _ in range(60):
        middle = (low + high) / 2
        if wealth(middle) >= math.log(1 / delta):
            high = middle
        else:
            low = middle
    return high


def lower_running_mean(
    values: Float[np.ndarray, " n"],
    bound: float,
    delta: float,
    sizes: Float[np.ndarray, " n"] | None = None,
) -> float:
    """Bound the mean of the conditional means of values, from below.

    Args:
      values, bound, delta, sizes: as for `upper_running_mean`.
    """
    return -upper_running_mean(-np.asarray(values, float), bound, delta, sizes)


def expected_regret(mean: float, error: float) -> float:
    """Compute what is lost on average by not taking the other one of two.

    The advantage of the other one is normal with mean `-mean`; what counts is its
    positive part: `error (phi(z) - z (1 - Phi(z)))`, z = mean / error.

    Args:
      mean: how much worse the other one is on average.
      error: standard error of that.
    """
    if error <= 0:
        return max(0.0, -mean)
    z = mean / error
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return error * (density - z * math.erfc(z / math.sqrt(2)) / 2)
