"""Solve entropic optimal transport; the only module that imports ott."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Int

from tta_jax._internal.typing import Array

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
    iterations: Int[Array, ""]
    error: Array


def mean_cost(
    cost: Float[Array, "n m"], a: Float[Array, " n"], b: Float[Array, " m"]
) -> Float[Array, ""]:
    """Mean of the cost under the independent coupling; the unit in which `epsilon` is
    given.
    """
    total = jnp.sum(a) * jnp.sum(b)
    return jnp.where(total > 0, a @ cost @ b / jnp.where(total > 0, total, 1.0), 1.0)


def masked_log(mass: Array) -> Array:
    return jnp.where(mass > 0, jnp.log(jnp.where(mass > 0, mass, 1.0)), -jnp.inf)


def soft_c_transform(
    cost: Float[Array, "n m"],
    g: Float[Array, " m"],
    log_b: Float[Array, " m"],
    epsilon: float | Float[Array, ""],
) -> Float[Array, " n"]:
    """`fhat_i = -eps LSE_j((g_j - C_ij) / eps + log b_j)`, `(n,)`; finite where
    `a_i = 0` (docs/theory.md, section 3.16).
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


def load_solver() -> None:
    """Import ott in another thread, beside what is compiled before it is used."""
    threading.Thread(target=_ott, daemon=True).start()


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
    log_b = masked_log(b)
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
        f + epsilon * masked_log(a),
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
    log_a, log_b = masked_log(a / safe), masked_log(b / safe)

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
    log_b = masked_log(b)

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
