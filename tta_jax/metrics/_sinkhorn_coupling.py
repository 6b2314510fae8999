"""Entropic optimal transport between the items of two tasks, tile by tile and solved to
convergence.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tta_jax._internal.typing import Array
from tta_jax.metrics._inputs import LabelledFeatures
from tta_jax.transport.certified_cost import split_rows
from tta_jax.transport.sinkhorn import (
    Potentials,
    sinkhorn_symmetric,
    sinkhorn_tiled,
    soft_c_transform,
)

CELLS = 1 << 22  # costs held at once: 4,194,304 of them
ITERATIONS = 20_000


class Coupling(NamedTuple):
    """What is known of the entropic plan between two tasks.

    Attributes:
      value: the entropic optimum `min_P <P, C> + epsilon KL(P | a x b)`; its gradient
        is that of the cost at the plan (Danskin).
      cost: `<P, C>`.
      joint: `(K_S, K_T)` mass between classes.
      potential: `(m,)` of the target's items.
      error: L1 error of the target marginal when it stopped.
    """

    value: Array
    cost: Array
    joint: Array
    potential: Array
    error: Array


def squared_distances(x: Array, y: Array) -> Array:
    """`||x_i - y_j||^2`, `(n, m)`, never below zero."""
    gap = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)[None] - 2 * x @ y.T
    return jnp.maximum(gap, 0.0)


def mean_square(source: LabelledFeatures, target: LabelledFeatures) -> Array:
    """Mean of `||x - y||^2` over all pairs of an item of each task: the unit in which
    epsilon counts.
    """
    first, second = (
        jnp.sum(task.features, axis=0) / task.size for task in (source, target)
    )
    squares = [jnp.sum(task.features**2) / task.size for task in (source, target)]
    return squares[0] + squares[1] - 2 * first @ second


def couple(
    source: LabelledFeatures,
    target: LabelledFeatures,
    label_cost: Array | None,
    epsilon: Array,
    *,
    feature_weight: float | Array = 1.0,
    start: Array | None = None,
    cells: int = CELLS,
) -> Coupling:
    """The entropic plan for the cost `w ||x - y||^2 + L[class of x, class of y]`
    between uniform masses.

    Args:
      source, target: tasks with the same features.
      label_cost: `(K_S, K_T)` L, or None for none.
      epsilon: scalar, in the units of the cost.
      start: a potential of the target's items to start from, such as its own
        (`couple_self`).
      cells: most costs that are held at once, static.
    """
    a, b = (
        jax.lax.stop_gradient(task.weights / task.size) for task in (source, target)
    )
    cost, rows = _cost(source, target, label_cost, feature_weight, cells)
    tiles, tile_a, tile_classes = split_rows(
        (rows, a, source.one_hot), _tile(source, target, cells)
    )
    found = sinkhorn_tiled(
        lambda r: _hold(cost(r)),
        _hold(tiles),
        tile_a,
        b,
        _hold(epsilon),
        max_iterations=ITERATIONS,
        threshold=_threshold(b.dtype),
        unit=jnp.ones((), b.dtype),
        start=start,
    )
    return _coupling(cost, tiles, tile_a, tile_classes, target, b, found, epsilon)


def couple_self(
    task: LabelledFeatures,
    label_cost: Array | None,
    epsilon: Array,
    *,
    cells: int = CELLS,
) -> Coupling:
    """The plan between a task and itself, which the symmetric iteration finds in a few
    dozen steps.
    """
    b = jax.lax.stop_gradient(task.weights / task.size)
    cost, rows = _cost(task, task, label_cost, 1.0, cells)
    tiles, tile_a, tile_classes = split_rows(
        (rows, b, task.one_hot), _tile(task, task, cells)
    )
    found = sinkhorn_symmetric(
        lambda r: _hold(cost(r)),
        _hold(tiles),
        b,
        _hold(epsilon),
        max_iterations=ITERATIONS,
        threshold=_threshold(b.dtype),
    )
    return _coupling(cost, tiles, tile_a, tile_classes, task, b, found, epsilon)


_hold = jax.lax.stop_gradient


def _threshold(dtype: Any) -> float:
    """The marginal error at which potentials count as converged; the value's error is
    of its square.
    """
    return float(jnp.finfo(dtype).eps) ** 0.6


def _tile(source: LabelledFeatures, target: LabelledFeatures, cells: int) -> int:
    return max(1, min(len(source.labels), cells // len(target.labels)))


def _cost(
    source: LabelledFeatures,
    target: LabelledFeatures,
    label_cost: Array | None,
    feature_weight: float | Array,
    cells: int,
) -> tuple[Any, Any]:
    """What gives costs of rows, and the rows: the costs themselves where all may be
    held, to be computed once.
    """

    def cost(rows):
        x, labels = rows
        found = feature_weight * squared_distances(x, target.features)
        return (
            found
            if label_cost is None
            else found + label_cost[labels][:, target.labels]
        )

    rows = (source.features, source.labels)
    if _tile(source, target, cells) < len(source.labels):
        return cost, rows
    return (lambda held: held), cost(rows)


def _coupling(
    cost,
    tiles,
    tile_a,
    tile_classes,
    target: LabelledFeatures,
    b: Array,
    found: Potentials,
    epsilon: Array,
) -> Coupling:
    log_b = jnp.where(b > 0, jnp.log(jnp.where(b > 0, b, 1.0)), -jnp.inf)

    @jax.checkpoint
    def add(carry, part):
        rows, mass, classes = part
        c = cost(rows)
        f = soft_c_transform(c, found.g, log_b, epsilon)
        plan = _hold(
            mass[:, None]
            * jnp.exp((f[:, None] + found.g[None] - c) / epsilon + log_b[None])
        )
        value, total, joint = carry
        joint = joint + _hold(classes).T @ plan @ _hold(target.one_hot)
        return (
            value + jnp.sum(jnp.where(mass > 0, mass * f, 0.0)),
            total + jnp.sum(plan * c),
            joint,
        ), None

    zero = jnp.zeros((), b.dtype)
    start = (
        zero,
        zero,
        jnp.zeros((tile_classes.shape[-1], target.one_hot.shape[1]), b.dtype),
    )
    (value, total, joint), _ = jax.lax.scan(add, start, (tiles, tile_a, tile_classes))
    return Coupling(
        value + jnp.sum(jnp.where(b > 0, b * found.g, 0.0)),
        total,
        joint,
        found.g,
        found.error,
    )
