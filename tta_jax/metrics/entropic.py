"""Entropic optimal transport between the items of two tasks, tile by tile and solved to convergence."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tta_jax import transport
from tta_jax.metrics.labelled import Array, Labelled

CELLS = 1 << 22  # costs held at once: 4,194,304 of them
ITERATIONS = 20_000


class Coupling(NamedTuple):
    """What is known of the entropic plan between two tasks.

    Attributes:
      value: the entropic optimum `min_P <P, C> + epsilon KL(P | a x b)`; its gradient is that of the cost at the plan (Danskin).
      cost: `<P, C>`.
      joint: `(K_S, K_T)` mass between classes.
      error: L1 error of the target marginal when it stopped.
    """

    value: Array
    cost: Array
    joint: Array
    error: Array


def squared_distances(x: Array, y: Array) -> Array:
    """`||x_i - y_j||^2`, `(n, m)`, never below zero."""
    gap = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)[None] - 2 * x @ y.T
    return jnp.maximum(gap, 0.0)


def mean_square(source: Labelled, target: Labelled) -> Array:
    """Mean of `||x - y||^2` over all pairs of an item of each task: the unit in which epsilon counts."""
    first, second = (jnp.sum(task.features, axis=0) / task.size for task in (source, target))
    squares = [jnp.sum(task.features**2) / task.size for task in (source, target)]
    return squares[0] + squares[1] - 2 * first @ second


def couple(
    source: Labelled,
    target: Labelled,
    label_cost: Array | None,
    epsilon: Array,
    *,
    feature_weight: float = 1.0,
    cells: int = CELLS,
) -> Coupling:
    """The entropic plan for the cost `w ||x - y||^2 + L[class of x, class of y]` between uniform masses.

    Args:
      source, target: tasks with the same features.
      label_cost: `(K_S, K_T)` L, or None for none.
      epsilon: scalar, in the units of the cost.
      cells: most costs that are held at once, static.
    """
    dtype = target.features.dtype
    a, b = (jax.lax.stop_gradient(task.weights / task.size) for task in (source, target))

    def cost(rows):
        x, labels = rows
        found = feature_weight * squared_distances(x, target.features)
        return found if label_cost is None else found + label_cost[labels][:, target.labels]

    rows, row_cost = (source.features, source.labels), cost
    tile = max(1, min(len(source.labels), cells // len(target.labels)))
    if tile >= len(source.labels):
        # Small enough to be held: computed once, not at every iteration.
        rows, row_cost = cost(rows), lambda held: held
    tiles = transport.split_rows((rows, a, source.one_hot), tile)
    hold = jax.lax.stop_gradient
    found = transport.sinkhorn_tiled(
        lambda r: hold(row_cost(r)), hold(tiles[0]), tiles[1], b, hold(epsilon),
        max_iterations=ITERATIONS, threshold=float(jnp.finfo(dtype).eps) ** 0.75, unit=jnp.ones((), dtype),
    )  # fmt: skip
    log_b = jnp.where(b > 0, jnp.log(jnp.where(b > 0, b, 1.0)), -jnp.inf)

    @jax.checkpoint
    def add(carry, part):
        tile_rows, tile_a, tile_classes = part
        c = row_cost(tile_rows)
        f = transport.soft_c_transform(c, found.g, log_b, epsilon)
        plan = hold(tile_a[:, None] * jnp.exp((f[:, None] + found.g[None] - c) / epsilon + log_b[None]))
        value, total, joint = carry
        return (
            value + tile_a @ f,
            total + jnp.sum(plan * c),
            joint + hold(tile_classes).T @ plan @ hold(target.one_hot),
        ), None

    zero = jnp.zeros((), dtype)
    start = (zero, zero, jnp.zeros((source.one_hot.shape[1], target.one_hot.shape[1]), dtype))
    (value, total, joint), _ = jax.lax.scan(add, start, tiles)
    return Coupling(value + b @ found.g, total, joint, found.error)
