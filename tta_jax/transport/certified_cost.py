"""Certify optimal transport costs from above and below (docs/theory.md, section
3.15).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Int

from tta_jax._internal.typing import Array
from tta_jax.core.linalg import matmul
from tta_jax.transport.sinkhorn import (
    Potentials,
    RowCost,
    masked_log,
    sinkhorn,
    sinkhorn_tiled,
    soft_c_transform,
)


class Transport(NamedTuple):
    """Certified value of one transport problem between equal masses.

    Attributes:
      upper: linear cost of a feasible plan; its gradient is that of the entropic cost
        at the fixed potentials (Danskin).
      lower: value of a feasible dual pair.
      others: linear costs of the same plan under other costs, `(k,)`; without a
        gradient.
      epsilon, iterations, error: as in `Potentials`.
    """

    upper: Array
    lower: Array
    others: Array
    epsilon: Array
    iterations: Int[Array, ""]
    error: Array


def certify_cost(
    cost: RowCost,
    rows,
    a: Float[Array, "tiles tile"],
    b: Float[Array, " m"],
    potentials: Potentials,
    other_costs: Sequence[RowCost] = (),
) -> Transport:
    """Upper and lower value of the transport from masses `a (tiles, tile)` to `b (m,)`
    with equal totals.

    Differentiable in the cost and in the masses: `<P, dC> + <f, da> + <g, db>` at the
    plan and potentials found.
    """
    g, epsilon = (
        lax.stop_gradient(potentials.g).astype(b.dtype),
        potentials.epsilon.astype(b.dtype),
    )
    total = jnp.sum(b)
    has = b > 0
    # Without mass the plan is zero anyway; uniform weights keep its potentials finite.
    log_b = masked_log(
        lax.stop_gradient(
            jnp.where(total > 0, b / jnp.where(total > 0, total, 1.0), 1.0 / b.shape[0])
        )
    )
    hold = lax.stop_gradient

    def proposal(c, tile_a):
        """Rows of the plan with the exact source marginal, and the soft potential that
        makes them so.
        """
        f = soft_c_transform(c, g, log_b, epsilon)
        plan = hold(tile_a)[:, None] * jnp.exp(
            (f[:, None] + g[None] - c) / epsilon + log_b[None]
        )
        # The row sums are a_i to rounding; what is moved must not exceed a_i.
        sums = jnp.sum(plan, 1)
        return plan * jnp.minimum(1.0, hold(tile_a) / jnp.where(sums > 0, sums, 1.0))[
            :, None
        ], f

    def first(carry, tile):
        columns, dual, best = carry
        tile_rows, tile_a = tile
        c = hold(cost(tile_rows))
        plan, _ = proposal(c, tile_a)
        hard = jnp.min(jnp.where(has[None], c - g[None], jnp.inf), axis=1)
        best = jnp.minimum(
            best,
            jnp.min(
                jnp.where((tile_a > 0)[:, None], c - hard[:, None], jnp.inf), axis=0
            ),
        )
        dual = dual + jnp.sum(jnp.where(tile_a > 0, tile_a * hard, 0.0))
        return (columns + jnp.sum(plan, 0), dual, best), None

    zero = jnp.zeros((), b.dtype)
    start = (jnp.zeros_like(b), zero, jnp.full_like(b, jnp.inf))
    (columns, dual, best), _ = lax.scan(first, start, (hold(rows), hold(a)))
    # The second half of the dual is the c-transform of the first: feasible, and not
    # worse than g itself.
    lower = dual + jnp.sum(jnp.where(has, hold(b) * best, 0.0))
    keep = jnp.minimum(1.0, hold(b) / jnp.where(columns > 0, columns, 1.0))
    missing_b = jnp.maximum(hold(b) - keep * columns, 0.0)

    @jax.checkpoint
    def second(carry, tile):
        tile_rows, tile_a = tile
        c = cost(tile_rows)
        plan, f = proposal(hold(c), tile_a)
        plan = plan * keep[None]
        missing_a = jnp.maximum(hold(tile_a) - jnp.sum(plan, 1), 0.0)
        outs = [
            jnp.sum(plan * c),
            matmul(matmul(missing_a, c), missing_b),
            jnp.sum(missing_a),
            jnp.sum(f * (tile_a - hold(tile_a))),
        ]
        for other in other_costs:
            d = hold(other(tile_rows))
            outs += [
                jnp.sum(hold(plan) * d),
                matmul(matmul(hold(missing_a), d), hold(missing_b)),
            ]
        return [old + new for old, new in zip(carry, outs, strict=True)], None

    sums, _ = lax.scan(second, [zero] * (4 + 2 * len(other_costs)), (rows, a))
    left = jnp.maximum(sums[2], jnp.sum(missing_b))
    share = jnp.where(left > 0, 1.0 / jnp.where(left > 0, left, 1.0), 0.0)
    by_mass = sums[3] + jnp.sum(jnp.where(has, g, 0.0) * (b - hold(b)))
    upper = sums[0] + sums[1] * share + by_mass
    others = jnp.zeros(0, b.dtype)
    if other_costs:
        others = jnp.stack(sums[4::2]) + jnp.stack(sums[5::2]) * hold(share)
    return Transport(
        upper,
        jnp.maximum(lower, 0.0),
        others,
        epsilon,
        potentials.iterations,
        potentials.error,
    )


def split_rows(rows, size: int):
    """A pytree of `(n, ...)` arrays as `(tiles, size, ...)`, padded with zeros (so
    padded rows have no mass).
    """

    def cut(v):
        missing = -v.shape[0] % size
        v = jnp.pad(v, [(0, missing)] + [(0, 0)] * (v.ndim - 1)) if missing else v
        return v.reshape(-1, size, *v.shape[1:])

    return jax.tree.map(cut, rows)


def propose(
    costs: list[RowCost],
    rows,
    a: Float[Array, " n"],
    b: Float[Array, " m"],
    epsilon: float | Float[Array, ""],
    *,
    max_iterations: int = 1000,
    fixed: bool = False,
    tile: int | None = None,
) -> list[Potentials]:
    """Entropic potentials for several costs between the same masses, in float32
    whatever the inputs.

    Args:
      costs: each maps rows of the source (a pytree of `(k, ...)`) to costs `(k, m)`.
      rows: the source, a pytree of `(n, ...)`.
      a, b: masses `(n,)` and `(m,)` with equal totals; zeros allowed.
      epsilon: relative to the mean cost.
      max_iterations, fixed: as in `sinkhorn`.
      tile: rows of the cost held at once; None holds all `(n, m)` of every cost.
    """
    # Below, costs over epsilon overflow float32; above, nothing changes any more.
    epsilon = jnp.clip(jnp.asarray(epsilon, jnp.float32), 1e-5, 1e3)
    a, b = (lax.stop_gradient(v).astype(jnp.float32) for v in (a, b))

    def narrow(cost):
        return lambda r: lax.stop_gradient(cost(r)).astype(jnp.float32)

    if tile is not None and tile < a.shape[0]:
        tiles, tile_a = split_rows((lax.stop_gradient(rows), a), tile)
        return [
            sinkhorn_tiled(
                narrow(c), tiles, tile_a, b, epsilon, max_iterations=max_iterations
            )
            for c in costs
        ]

    # One compiled solver for all costs.
    def solve(matrix):
        return sinkhorn(
            matrix, a, b, epsilon, max_iterations=max_iterations, fixed=fixed
        )

    found = lax.map(solve, jnp.stack([narrow(c)(rows) for c in costs]))
    return [jax.tree.map(lambda v: v[i], found) for i in range(len(costs))]


def solve(
    costs: list[RowCost],
    rows,
    a: Float[Array, " n"],
    b: Float[Array, " m"],
    epsilon: float | Float[Array, ""],
    *,
    max_iterations: int = 1000,
    tile: int | None = None,
) -> list[Transport]:
    """Propose and certify for several costs; arguments as in `propose`.

    A plan is feasible for every cost, so `upper` is the least value of all plans under
    a cost. Its gradient is that of the cost's own plan: other plans move with their own
    costs, which no envelope theorem covers.
    """
    budget: Any = {"max_iterations": max_iterations, "tile": tile}
    if tile is not None and tile < a.shape[0]:
        found = propose(costs, rows, a, b, epsilon, **budget)
        tiles, tile_a = split_rows((rows, a), tile)
        values = [
            certify_cost(c, tiles, tile_a, b, f, costs)
            for c, f in zip(costs, found, strict=True)
        ]
        return _best_plans(values)
    # Held as a whole, every cost is computed once, and all of them share one compiled
    # solver and certificate.
    matrices = jnp.stack([cost(rows) for cost in costs])

    def pick(i):
        return lambda held: held[i]

    found = propose(
        [pick(i) for i in range(len(costs))], matrices, a, b, epsilon, **budget
    )

    def pick_other(i):
        return lambda held: held[1][i]

    def one(problem):
        matrix, potentials = problem
        return certify_cost(
            pick(0),
            (matrix[None], matrices[None]),
            a[None],
            b,
            potentials,
            [pick_other(i) for i in range(len(costs))],
        )

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)
    values = lax.map(one, (matrices, stacked))
    return _best_plans(
        [jax.tree.map(lambda v: v[i], values) for i in range(len(costs))]
    )


def _best_plans(values: list[Transport]) -> list[Transport]:
    """Replace the value of each cost by that of the plan that is cheapest for it."""
    best = jnp.min(jnp.stack([value.others for value in values]), axis=0)
    return [
        value._replace(
            upper=value.upper + lax.stop_gradient(best[i] - value.upper),
        )
        for i, value in enumerate(values)
    ]
