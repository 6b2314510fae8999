"""Optimal transport that certifies. The only file that imports ott.

Sinkhorn only proposes: the upper value is the linear cost of its plan rounded to the
exact marginals (Altschuler, Weed, Rigollet 2017, Algorithm 2), the lower value that of
a c-transformed dual pair. Both are computed tile by tile from a function that gives
rows of the cost, so the matrix need never exist as a whole. Plans are
`a_i b_j exp((f_i + g_j - C_ij) / eps)`.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

Array = jax.Array

# The marginal error (L1) at which Sinkhorn stops: it only proposes, and rounding
# repairs what is left. The tiled one looks
# at every iteration, not at every fifth, and so would stop sooner.
_MARGINAL_ERROR, _MARGINAL_ERROR_TILED = 3e-2, 1e-2

# Over-relaxed updates (Thibault et al. 2021) need half the iterations for the same
# error.
_OVER_RELAXATION = 1.3

RowCost = Callable[
    ..., Array
]  # rows of the source (a pytree of (tile, ...)) -> costs (tile, m)


class Potentials(NamedTuple):
    """Where the entropic problem stands.

    Attributes:
      g: `(m,)` potential of the target; the source's follows from it by one soft
        c-transform.
      epsilon: scalar, the regularisation it belongs to.
      iterations: Sinkhorn iterations spent.
      error: last L1 error of the target marginal.
    """

    g: Array
    epsilon: Array
    iterations: Any
    error: Array


class Transport(NamedTuple):
    """Certified value of one transport problem between equal masses.

    Attributes:
      upper: linear cost of a feasible plan; its gradient is that of the entropic cost
        at the fixed potentials (Danskin).
      lower: value of a feasible dual pair.
      other: linear cost of the same plan under the second cost, if one was given.
      epsilon, iterations, error: as in `Potentials`.
    """

    upper: Array
    lower: Array
    other: Array
    epsilon: Array
    iterations: Any
    error: Array


def mean_cost(
    cost: Float[Array, "n m"], a: Float[Array, " n"], b: Float[Array, " m"]
) -> Float[Array, ""]:
    """Mean of the cost under the independent coupling; the unit in which `epsilon` is
    given.
    """
    total = jnp.sum(a) * jnp.sum(b)
    return jnp.where(total > 0, a @ cost @ b / jnp.where(total > 0, total, 1.0), 1.0)


def _log(mass: Array) -> Array:
    return jnp.where(mass > 0, jnp.log(jnp.where(mass > 0, mass, 1.0)), -jnp.inf)


def soft_c_transform(
    cost: Float[Array, "n m"],
    g: Float[Array, " m"],
    log_b: Float[Array, " m"],
    epsilon: float | Float[Array, ""],
) -> Float[Array, " n"]:
    """`fhat_i = -eps LSE_j((g_j - C_ij) / eps + log b_j)`, `(n,)`; finite where
    `a_i = 0` (spec, section 3, gradients).
    """
    return -epsilon * jax.nn.logsumexp((g[None] - cost) / epsilon + log_b[None], axis=1)


class _Ott(NamedTuple):
    """The modules of ott that are used; seconds to import, so only when they are."""

    geometry: Any
    linear_problem: Any
    acceleration: Any
    sinkhorn: Any


@functools.cache
def _ott() -> _Ott:
    # ott imports jaxopt, whose notice about its own retirement is none of the user's
    # business.
    warnings.filterwarnings(
        "ignore", "JAXopt is no longer maintained", DeprecationWarning
    )
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import acceleration, sinkhorn

    return _Ott(geometry, linear_problem, acceleration, sinkhorn)


def sinkhorn(
    cost: Float[Array, "n m"],
    a: Float[Array, " n"],
    b: Float[Array, " m"],
    epsilon: Float[Array, ""],
    *,
    start: Float[Array, " m"] | None = None,
    max_iterations: int = 1000,
    threshold: float = _MARGINAL_ERROR,
    fixed: bool = False,
) -> Potentials:
    """ott's Sinkhorn on one dense cost `(n, m)`; masses with equal totals, zeros
    allowed.

    Args:
      epsilon: relative to the mean cost under the independent coupling.
      start: a potential `g (m,)` to start from (warm start).
      fixed: run exactly `max_iterations`, as `vmap` and the optimiser want it.
    """
    ott = _ott()
    cost, a, b = (lax.stop_gradient(v) for v in (cost, a, b))
    total = jnp.sum(b)
    safe = jnp.where(total > 0, total, 1.0)
    # A problem without mass has nothing to solve, but must not poison its neighbours
    # under vmap.
    a = jnp.where(total > 0, a / safe, 1.0 / a.shape[0])
    b = jnp.where(total > 0, b / safe, 1.0 / b.shape[0])
    scale = mean_cost(cost, a, b)
    epsilon = epsilon * jnp.where(scale > 0, scale, 1.0)
    log_b = _log(b)
    solver = ott.sinkhorn.Sinkhorn(
        threshold=0.0 if fixed else threshold,
        inner_iterations=min(5, max_iterations),
        min_iterations=max_iterations if fixed else 0,
        max_iterations=max_iterations,
        use_danskin=True,
        momentum=ott.acceleration.Momentum(value=1.0 if fixed else _OVER_RELAXATION),
    )
    f, g = jnp.zeros_like(a), jnp.zeros_like(b)
    if start is not None:
        # The solver updates g first, from f.
        f, g = soft_c_transform(cost, start, log_b, epsilon), start
    # Its potentials contain the log masses.
    init = (
        f + epsilon * _log(a),
        jnp.where(b > 0, g + epsilon * jnp.where(b > 0, log_b, 0.0), -jnp.inf),
    )
    target_epsilon: Any = epsilon
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        problem = ott.linear_problem.LinearProblem(
            ott.geometry.Geometry(cost, epsilon=target_epsilon), a=a, b=b
        )
        out: Any = solver(problem, init=init)
    g = jnp.where(b > 0, out.g - epsilon * jnp.where(b > 0, log_b, 0.0), 0.0)
    error = out.errors[jnp.maximum(out.n_iters // solver.inner_iterations - 1, 0)]
    bad = ~jnp.isfinite(g)
    # A failed solve is still a valid proposal: zero potentials give the independent
    # coupling.
    g = lax.stop_gradient(jnp.where(jnp.any(bad), 0.0, g))
    return Potentials(g, lax.stop_gradient(epsilon), out.n_iters, error)


def sinkhorn_tiled(
    cost: RowCost,
    rows,
    a: Array,
    b: Array,
    epsilon: float | Float[Array, ""],
    *,
    max_iterations: int,
    threshold: float = _MARGINAL_ERROR_TILED,
    unit: Float[Array, ""] | None = None,
    start: Float[Array, " m"] | None = None,
) -> Potentials:
    """The same problem with the cost recomputed tile by tile; `rows`, `a` carry a
    leading axis of tiles.

    One pass over the rows updates f for a tile and at once adds the tile to the running
    log-sum of g. Nesterov's momentum, restarted when the error grows, in place of
    over-relaxation: far ahead where the error has to be small. `epsilon` counts in
    `unit`, the mean cost under the independent coupling when None; `start` is a
    potential to start from.
    """
    total = jnp.sum(b)
    safe = jnp.where(total > 0, total, 1.0)
    log_a, log_b = _log(a / safe), _log(b / safe)

    def scale_of(carry, tile):
        tile_rows, tile_a = tile
        return carry + tile_a @ cost(tile_rows) @ b, None

    if unit is None:
        scale, _ = lax.scan(scale_of, jnp.zeros((), b.dtype), (rows, a))
        unit = scale / safe**2
    epsilon = epsilon * jnp.where(unit > 0, unit, 1.0)

    def sweep(g):
        def tile_step(carry, tile):
            high, mass = carry
            tile_rows, tile_log_a = tile
            c = cost(tile_rows)
            f = soft_c_transform(c, g, log_b, epsilon)
            terms = (f[:, None] - c) / epsilon + tile_log_a[:, None]
            new = jnp.maximum(high, jnp.max(terms, axis=0))
            anchor = jnp.where(new > -jnp.inf, new, 0.0)
            mass = mass * jnp.exp(jnp.where(high > -jnp.inf, high - anchor, -jnp.inf))
            return (new, mass + jnp.sum(jnp.exp(terms - anchor[None]), axis=0)), None

        empty = (jnp.full_like(b, -jnp.inf), jnp.zeros_like(b))
        (high, mass), _ = lax.scan(tile_step, empty, (rows, log_a))
        return -epsilon * (high + jnp.log(mass))

    def step(carry):
        last, ahead, momentum, count, before = carry
        new = jnp.where(b > 0, sweep(ahead), 0.0)
        # exp((g - new) / eps) is the ratio of the column sums to b before the update.
        error = jnp.sum(
            jnp.where(
                b > 0, b / safe * jnp.abs(jnp.expm1((ahead - new) / epsilon)), 0.0
            )
        )
        momentum = jnp.where(error > before, 1.0, momentum)
        grown = 0.5 * (1 + jnp.sqrt(1 + 4 * momentum**2))
        further = jnp.where(error > before, 0.0, (momentum - 1) / grown)
        return new, new + further * (new - last), grown, count + 1, error

    def unfinished(carry):
        return (carry[3] < max_iterations) & (carry[4] > threshold)

    g = jnp.zeros_like(b) if start is None else lax.stop_gradient(start)
    begin = (g, g, jnp.ones((), b.dtype), jnp.asarray(0), jnp.asarray(jnp.inf, b.dtype))
    g, _, _, count, error = lax.while_loop(unfinished, step, begin)
    g = jnp.where(jnp.any(~jnp.isfinite(g)), 0.0, g)
    return Potentials(g, epsilon, count, error)


def sinkhorn_symmetric(
    cost: RowCost,
    rows,
    b: Float[Array, " m"],
    epsilon: Float[Array, ""],
    *,
    max_iterations: int,
    threshold: float,
) -> Potentials:
    """A problem between masses `b` and themselves: one potential, averaged with its
    soft c-transform.

    The average halves the error at least, where alternating updates crawl (Feydy et al.
    2019). `rows` are those of `b` with a leading axis of tiles, the last one padded;
    `epsilon` counts in units of the cost.
    """
    log_b = _log(b)

    def step(carry):
        g, count, _ = carry
        new = lax.map(
            lambda tile: soft_c_transform(cost(tile), g, log_b, epsilon), rows
        ).reshape(-1)[: b.shape[0]]
        error = jnp.sum(
            jnp.where(b > 0, b * jnp.abs(jnp.expm1((g - new) / epsilon)), 0.0)
        )
        return jnp.where(b > 0, (g + new) / 2, 0.0), count + 1, error

    begin = (jnp.zeros_like(b), jnp.asarray(0), jnp.asarray(jnp.inf, b.dtype))
    g, count, error = lax.while_loop(
        lambda c: (c[1] < max_iterations) & (c[2] > threshold), step, begin
    )
    g = jnp.where(jnp.any(~jnp.isfinite(g)), 0.0, g)
    return Potentials(g, epsilon, count, error)


def certify(
    cost: RowCost,
    rows,
    a: Float[Array, "tiles tile"],
    b: Float[Array, " m"],
    potentials: Potentials,
    second_cost: RowCost | None = None,
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
    log_b = _log(
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
            missing_a @ c @ missing_b,
            jnp.sum(missing_a),
            jnp.sum(f * (tile_a - hold(tile_a))),
        ]
        if second_cost is not None:
            d = second_cost(tile_rows)
            outs += [jnp.sum(plan * d), missing_a @ d @ missing_b]
        return [old + new for old, new in zip(carry, outs, strict=True)], None

    sums, _ = lax.scan(second, [zero] * (4 if second_cost is None else 6), (rows, a))
    left = jnp.maximum(sums[2], jnp.sum(missing_b))
    share = jnp.where(left > 0, 1.0 / jnp.where(left > 0, left, 1.0), 0.0)
    by_mass = sums[3] + jnp.sum(jnp.where(has, g, 0.0) * (b - hold(b)))
    upper = sums[0] + sums[1] * share + by_mass
    other = (
        jnp.asarray(jnp.inf, b.dtype)
        if second_cost is None
        else sums[4] + sums[5] * share
    )
    return Transport(
        upper,
        jnp.maximum(lower, 0.0),
        other,
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
    fixed: bool = False,
    tile: int | None = None,
) -> list[Transport]:
    """Propose and certify for several costs; arguments as in `propose`. `other` is
    every plan's value under `costs[0]`.
    """
    budget: Any = {"max_iterations": max_iterations, "fixed": fixed, "tile": tile}
    if tile is not None and tile < a.shape[0]:
        found = propose(costs, rows, a, b, epsilon, **budget)
        tiles, tile_a = split_rows((rows, a), tile)
        return [
            certify(c, tiles, tile_a, b, f, costs[0])
            for c, f in zip(costs, found, strict=True)
        ]
    # Held as a whole, every cost is computed once, and all of them share one compiled
    # solver and certificate.
    matrices = [cost(rows) for cost in costs]

    def pick(i):
        return lambda held: held[i]

    found = propose(
        [pick(i) for i in range(len(costs))], matrices, a, b, epsilon, **budget
    )

    def one(problem):
        matrix, potentials = problem
        return certify(
            pick(0), (matrix[None], matrices[0][None]), a[None], b, potentials, pick(1)
        )

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)
    values = lax.map(one, (jnp.stack(matrices), stacked))
    return [jax.tree.map(lambda v: v[i], values) for i in range(len(costs))]
