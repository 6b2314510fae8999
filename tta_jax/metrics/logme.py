"""LogME: the largest log evidence of a Bayesian linear model of the labels (You et al.
2021), exact for every n and d.

With prior `w ~ N(0, 1/alpha)` and noise `N(0, 1/beta)` the evidence depends, once beta
is at its best `n / Q(t)`, on the ratio `t = alpha / beta` alone:

    L(t) = -1/2 (n ln(2 pi Q(t) / n) + n + sum_i ln(1 + lambda_i / t)),   Q(t) = r^2 +
    sum_i a_i t / (t + lambda_i),

where `lambda_i` are the eigenvalues of `X X^T`, `a_i` the squared coordinates of the
labels in its eigenvectors and `r^2` what lies outside them. `ln t` is searched on a
grid finer than any term bends and refined by Newton's method inside a bracket, so the
maximum is the global one; the usual fixed point in (alpha, beta) is not always (and
counts the wrong number of directions where n < d).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tta_jax._internal.typing import Array, ArrayLike
from tta_jax.core.linalg import eigh, gram, significant
from tta_jax.metrics._inputs import LabelledFeatures, floats, labelled_features
from tta_jax.metrics._registry import GRAM_COST, metric

_STEP = 0.5  # of ln t; a term of L bends over about 4
_BEYOND = 12.0  # of ln t, searched outside the spectrum; farther out L is flat
_ROUNDS = 12  # of Newton's method, or halvings of a bracket of _STEP


@metric(
    "nothing",
    cost=GRAM_COST,
    reference="You et al. 2021, arXiv 2102.11005",
    undefined=(
        "the labels are an exact linear function of the features; the evidence has no "
        "bound"
    ),
)
@jax.jit
def logme(target: LabelledFeatures) -> Array:
    """Return the largest log evidence per item of one-hot labels, mean over classes,
    nats (a density: may be positive).

    No intercept, as published. Infinite where labels are an exact linear function of
    the features: the evidence has no bound.
    """
    return target.mean_over_classes(
        log_evidence(target.features, target.one_hot, target.size) / target.size
    )


def logme_regression(
    features: ArrayLike, values: ArrayLike, *, mask: ArrayLike | None = None
) -> Array:
    """Return the largest log evidence per item of real targets, mean over the columns,
    nats.

    Args:
      features: `(n, d)` float.
      values: `(n,)` or `(n, q)` real targets.
      mask: `(n,)` bool, False for padding; None where all items count.

    Raises:
      ValueError: names the argument.
    """
    values = jnp.asarray(values)
    values = values[:, None] if values.ndim == 1 else values
    data = labelled_features(features, np.zeros(values.shape[0], np.int32), mask, 1)
    targets = floats(values, "values", values.shape[0]).astype(data.features.dtype)
    targets = jnp.where(data.weights[:, None] > 0, targets, 0.0)
    return jnp.mean(
        jax.jit(log_evidence)(data.features, targets, data.size) / data.size
    )


class _Best(NamedTuple):
    """Where the evidence of each target is largest.

    Attributes:
      evidence: `(K,)`.
      ratio: `(K,)` t = alpha / beta.
      beta: `(K,)` noise precision.
      values, vectors: spectrum of the smaller Gram matrix.
      alive: which directions are more than rounding.
    """

    evidence: Array
    ratio: Array
    beta: Array
    values: Array
    vectors: Array
    alive: Array


@jax.custom_jvp
def log_evidence(features: Array, targets: Array, size: Array) -> Array:
    """Largest log evidence of each column of `targets (n, K)`, `(K,)` nats; rows of
    padding are zero, `size` items count.
    """
    return _search(features, targets, size).evidence


@log_evidence.defjvp
def _log_evidence_jvp(primals, tangents):
    """At the best (alpha, beta) the evidence moves as if they stayed, since it is
    largest there.
    """
    (features, targets, size), (by_features, by_targets, _) = primals, tangents
    best = _search(features, targets, size)
    shifted = (
        jnp.where(best.alive, best.values, 0.0)[:, None] + best.ratio[None]
    )  # (r, K)
    basis = best.vectors
    if features.shape[0] <= features.shape[1]:
        misfit = basis @ ((basis.T @ targets) / shifted)
        mean, misfit = features.T @ misfit, best.ratio[None] * misfit
        moves = jnp.sum((basis.T @ by_features) * (basis.T @ features), axis=1)
    else:
        mean = basis @ jnp.where(
            best.alive[:, None], (basis.T @ (features.T @ targets)) / shifted, 0.0
        )
        misfit = targets - features @ mean
        moves = jnp.sum((features @ basis) * (by_features @ basis), axis=0)
    # -tr((t + X^T X)^-1 X^T dX) of the determinant, beta (y - X m)^T (dX m - dy) of the
    # fit at the posterior mean m.
    determinant = jnp.sum(jnp.where(best.alive, moves, 0.0)[:, None] / shifted, axis=0)
    fit = best.beta * jnp.sum(misfit * (by_features @ mean - by_targets), axis=0)
    return best.evidence, fit - determinant


def _search(features: Array, targets: Array, size: Array) -> _Best:
    """The spectrum, the grid over ln t, Newton's method from its best point, and the
    two limits of t.
    """
    n, d = features.shape
    dtype = features.dtype
    square = jnp.sum(targets**2, axis=0)
    if n <= d:
        values, vectors = eigh(gram(features.T))
        alive = significant(values, d)
        inside = (vectors.T @ targets) ** 2
        outside = jnp.sum(jnp.where(alive[:, None], 0.0, inside), axis=0)
    else:
        values, vectors = eigh(gram(features))
        alive = significant(values, n)
        cross = vectors.T @ (features.T @ targets)
        safe = jnp.where(alive, values, 1.0)[:, None]
        inside = cross**2 / safe
        fitted = features @ (vectors @ jnp.where(alive[:, None], cross / safe, 0.0))
        outside = jnp.sum((targets - fitted) ** 2, axis=0)
    rank = jnp.sum(alive, dtype=dtype)
    inside = jnp.where(alive[:, None], inside, 0.0)
    # What the items cannot leave over, and what is rounding, is nothing.
    outside = jnp.where(
        (rank >= size) | (outside < (jnp.finfo(dtype).eps * n) ** 2 * square),
        0.0,
        outside,
    )
    top = jnp.max(values)
    top = jnp.where(top > 0, top, 1.0)
    spectrum = jnp.where(alive, values, 0.0) / top

    row = spectrum[None]

    def evidence(left: Array, t: Array) -> Array:
        logs = jnp.sum(jnp.log1p(row / t), axis=1)
        return -0.5 * (
            size * (jnp.log(2 * math.pi * left / size) + 1)
            + (logs[:, None] if left.ndim == 2 else logs)
        )

    def on_grid(log_t: Array) -> Array:
        t = jnp.exp(log_t)[:, None]
        return evidence((t / (t + row)) @ inside + outside[None], t)

    def of_each(log_t: Array) -> tuple[Array, Array]:
        """Evidence and Q of every column at a point of its own, `(K,)`."""
        t = jnp.exp(log_t)[:, None]
        left = jnp.sum(t / (t + row) * inside.T, axis=1) + outside
        return evidence(left, t), left

    floor = math.log(float(jnp.finfo(dtype).eps) * max(n, d)) - _BEYOND
    grid = jnp.arange(floor, _BEYOND, _STEP, dtype=dtype)
    height = on_grid(grid)
    peak = grid[jnp.argmax(jnp.where(jnp.isnan(height), -jnp.inf, height), axis=0)]

    def slopes(log_t: Array) -> tuple[Array, Array]:
        """First and second derivative of every column's evidence by ln t, halves left
        out.
        """
        t = jnp.exp(log_t)[:, None]
        share = row / (t + row)
        left = jnp.sum((1 - share) * inside.T, axis=1) + outside
        moves = inside.T * share * (1 - share)
        first, second = jnp.sum(moves, axis=1), jnp.sum(moves * (2 * share - 1), axis=1)
        by_left = jnp.where(left > 0, first / jnp.where(left > 0, left, 1.0), 0.0)
        bend = (
            jnp.where(left > 0, second / jnp.where(left > 0, left, 1.0), 0.0)
            - by_left**2
        )
        return jnp.sum(share, axis=1) - size * by_left, -jnp.sum(
            share * (1 - share), axis=1
        ) - size * bend

    def narrow(_, state):
        low, high, here = state
        slope, bend = slopes(here)
        low, high = jnp.where(slope > 0, here, low), jnp.where(slope > 0, high, here)
        newton = here - slope / jnp.where(bend < 0, bend, -1.0)
        good = (bend < 0) & (newton > low - slack) & (newton < high + slack)
        return low, high, jnp.where(good, newton, (low + high) / 2)

    # A step from the best point itself may leave the bracket by rounding.
    slack = _STEP * math.sqrt(jnp.finfo(dtype).eps)
    _, _, log_t = jax.lax.fori_loop(
        0, _ROUNDS, narrow, (peak - _STEP, peak + _STEP, peak)
    )
    found, left = of_each(log_t)

    # Without weights at all, t = inf; and t = 0, where the features span every item.
    nothing = -0.5 * size * (jnp.log(2 * math.pi * square / size) + 1)
    spread = jnp.sum(inside / jnp.where(alive, spectrum, 1.0)[:, None], axis=0)
    everything = -0.5 * (
        size * (jnp.log(2 * math.pi * spread / size) + 1)
        + jnp.sum(jnp.where(alive, jnp.log(jnp.where(alive, spectrum, 1.0)), 0.0))
    )
    everything = jnp.where(rank >= size, everything, -jnp.inf)
    # Exact labels from fewer directions than items: the noise goes to zero and the
    # evidence beyond every bound.
    everything = jnp.where(
        (outside == 0) & (rank < size) & (square > 0), jnp.inf, everything
    )
    value = jnp.maximum(jnp.maximum(found, nothing), everything)
    ratio = jnp.where(
        value > found,
        jnp.where(nothing >= everything, jnp.exp(_BEYOND), jnp.exp(floor)),
        jnp.exp(log_t),
    )
    left = jnp.where(
        value > found, jnp.where(nothing >= everything, square, ratio * spread), left
    )
    return _Best(
        evidence=jnp.where(square > 0, value, jnp.nan),
        ratio=ratio * top,
        beta=size / left,
        values=values,
        vectors=vectors,
        alive=alive,
    )
