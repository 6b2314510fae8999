"""Transport that certifies: feasible plans, dual bounds, closed forms, and the gradient
in several ways.
"""

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from tests.reference import numpy_chain as oracle
from tests.typed import on_host
from tta_jax.transport.certified_cost import certify_cost, propose, split_rows
from tta_jax.transport.sinkhorn import Potentials, sinkhorn, sinkhorn_tiled

seeds = st.integers(0, 2**31 - 1)
N, M, TILE, MASS = 14, 9, 5, 0.3


def problem(seed, n=N, m=M):
    """Points with duplicates across the sides, masses with zeros, total 0.3."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 2)), rng.normal(size=(m, 2)) + rng.choice([0, 3])
    y[0], x[1], y[2] = x[0], x[0], y[1]
    cost = np.linalg.norm(x[:, None] - y[None], axis=2)
    a, b = (
        rng.dirichlet(np.ones(n) * rng.choice([0.2, 5])),
        rng.dirichlet(np.ones(m) * rng.choice([0.2, 5])),
    )
    a[rng.random(n) < 0.2], b[rng.random(m) < 0.2] = 0, 0
    a[3], b[3] = a[3] + 0.1, b[3] + 0.1
    return cost, a / a.sum() * MASS, b / b.sum() * MASS


def _certified(cost, a, b, g, epsilon, tile):
    found = Potentials(g, epsilon, jnp.zeros((), jnp.int32), jnp.zeros(()))

    # The identity as cost function: rows of the source are rows of the cost.
    def value(c):
        rows, masses = split_rows((c, a), tile)
        return certify_cost(lambda rows: rows, rows, masses, b, found)

    upper, plan = jax.value_and_grad(lambda c: value(c).upper)(cost)
    return upper, value(cost).lower, plan


certified = jax.jit(_certified, static_argnames="tile")
solve = jax.jit(
    lambda cost, a, b, epsilon, iterations: propose(
        [lambda c: c], cost, a, b, epsilon, max_iterations=iterations, fixed=False
    )[0],
    static_argnames="iterations",
)


@given(
    seeds,
    st.sampled_from([1e-3, 0.05, 10.0]),
    st.sampled_from([0.0, 1.0, 100.0]),
    st.sampled_from([N, TILE]),
)
def test_any_potential_whatever_certifies(seed, epsilon, size, tile):
    """The plan has the exact marginals and the interval the exact value for arbitrary,
    not only converged, potentials.
    """
    cost, a, b = problem(seed)
    g = np.random.default_rng(seed).normal(size=M) * size
    with jax.enable_x64(True):
        upper, lower, plan = jax.device_get(
            certified(cost, a, b, g, np.float64(epsilon), tile)
        )
    assert np.all(plan >= 0)
    np.testing.assert_allclose(plan.sum(1), a, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(plan.sum(0), b, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose((plan * cost).sum(), upper, rtol=1e-9)
    exact = oracle.exact_transport(cost, a, b)
    assert lower <= exact + 1e-12
    assert upper >= exact - 1e-12


@given(seeds)
@settings(max_examples=15)
def test_tiles_change_nothing(seed):
    cost, a, b = problem(seed)
    g = np.random.default_rng(seed).normal(size=M)
    with jax.enable_x64(True):
        dense, tiled = (
            jax.device_get(certified(cost, a, b, g, np.float64(0.1), tile))
            for tile in (N, TILE)
        )
    for x, y in zip(dense, tiled, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-14)


@given(seeds)
@settings(max_examples=15)
def test_solver_closes_the_gap(seed):
    cost, a, b = problem(seed)
    with jax.enable_x64(True):
        found = solve(cost, a, b, 0.02, 2000)
        upper, lower, _ = jax.device_get(
            certified(cost, a, b, found.g.astype(float), found.epsilon.astype(float), N)
        )
    exact = oracle.exact_transport(cost, a, b)
    assert lower <= exact + 1e-12 <= upper + 2e-12
    assert upper - lower <= 0.06 * (a @ cost @ b) / MASS


def test_tiled_solver_is_the_same_iteration():
    cost, a, b = (jnp.asarray(v, jnp.float32) for v in problem(3))
    options = {"max_iterations": 2000, "threshold": 1e-4}
    dense = jax.jit(lambda: sinkhorn(cost, a, b, jnp.float32(0.05), **options))()
    tiles, tile_a = split_rows((cost, a), TILE)
    tiled = jax.jit(
        lambda: sinkhorn_tiled(
            lambda c: c, tiles, tile_a, b, jnp.float32(0.05), **options
        )
    )()
    gap = np.asarray(dense.g - tiled.g)[np.asarray(b) > 0]
    np.testing.assert_allclose(gap - gap.mean(), 0, atol=5e-3)
    np.testing.assert_allclose(dense.epsilon, tiled.epsilon, rtol=1e-5)


def test_closed_forms(x64):
    """Point masses cost their distance, a translation its length, a measure and itself
    nothing.
    """

    def interval(*arrays):
        cost, a, b = map(jnp.asarray, arrays)
        found = propose([lambda c: c], cost, a, b, 0.002, max_iterations=3000)[0]
        rows, masses = split_rows((cost, a), len(a))
        value = certify_cost(lambda c: c, rows, masses, b, found)
        return float(value.lower), float(value.upper)

    one = jnp.ones(1)
    assert interval(jnp.full((1, 1), 2.5), one, one) == pytest.approx((2.5, 2.5))
    x = np.random.default_rng(0).normal(size=(8, 2))
    even = jnp.full(8, 1 / 8)
    for shift in (0.0, 1.5):
        cost = jnp.asarray(
            np.linalg.norm(x[:, None] - x[None] - np.array([shift, 0]), axis=2)
        )
        low, high = interval(cost, even, even)
        assert low <= shift + 1e-9
        assert high >= shift - 1e-9
        assert high - low <= 0.02


def test_nothing_to_transport_costs_nothing_and_poisons_nobody(x64):
    cost, a, b = (jnp.asarray(v) for v in problem(4))
    costs, masses_a, masses_b = (
        jnp.stack([cost, cost]),
        jnp.stack([a, 0 * a]),
        jnp.stack([b, 0 * b]),
    )

    def value(c, p, q):
        found = propose([lambda v: v], c, p, q, 0.05, max_iterations=200, fixed=True)[0]
        rows, masses = split_rows((c, p), N)
        out = certify_cost(lambda v: v, rows, masses, q, found)
        return out.upper, out.lower

    upper, lower = jax.jit(jax.vmap(value))(costs, masses_a, masses_b)
    assert upper[1] == lower[1] == 0
    exact = oracle.exact_transport(*(np.asarray(v) for v in (cost, a, b)))
    assert lower[0] <= exact + 1e-12 <= upper[0] + 2e-12

    def total(p, q):
        return jnp.sum(jax.vmap(value)(costs, p, q)[0])

    for leaf in jax.jit(jax.grad(total, argnums=(0, 1)))(masses_a, masses_b):
        assert np.isfinite(leaf).all()


def test_warm_start_from_the_solution_is_the_solution():
    cost, a, b = (jnp.asarray(v, jnp.float32) for v in problem(5))
    run = jax.jit(
        lambda g: sinkhorn(cost, a, b, jnp.float32(0.05), start=g, max_iterations=2000)
    )
    cold = sinkhorn(cost, a, b, jnp.float32(0.05), max_iterations=2000, threshold=1e-5)
    warm = run(cold.g)
    assert int(warm.iterations) <= 10
    gap = np.asarray(warm.g - cold.g)[np.asarray(b) > 0]
    np.testing.assert_allclose(gap - gap.mean(), 0, atol=1e-3)


# -- gradients -------------------------------------------------------------------------


def entropic(cost, a, b, epsilon, tol=1e-13):
    """Dual optimum `<f, a> + <g, b>` of the entropic cost by log-domain Sinkhorn in
    NumPy; f finite everywhere.
    """
    total = b.sum()
    with np.errstate(divide="ignore"):
        log_a, log_b = np.log(a / total), np.log(b / total)
    g = np.zeros(len(b))
    for _ in range(200_000):
        f = -epsilon * logsumexp((g[None] - cost) / epsilon + log_b[None], axis=1)
        new = -epsilon * logsumexp(
            (f[:, None] - cost) / epsilon + log_a[:, None], axis=0
        )
        done, g = np.abs(new - g).max() < tol, new
        if done:
            break
    # f last, at the final g: it is then the soft c-transform, also where a is zero.
    f = -epsilon * logsumexp((g[None] - cost) / epsilon + log_b[None], axis=1)
    return f @ a + g @ b, f, g


@pytest.fixture(scope="module")
def converged():
    cost, a, b = problem(6)
    a[4] = 0
    a *= MASS / a.sum()
    with jax.enable_x64(True):
        p, q = jnp.asarray(a), jnp.asarray(b)
        found = propose(
            [lambda c: c], cost, p, q, 0.2, max_iterations=5000, fixed=True
        )[0]
        epsilon = float(found.epsilon)
        # float32 potentials are polished in NumPy, so that only the formula is judged
        # and not the solver's stop.
        value, f, g = entropic(cost, a, b, epsilon)
        gap = np.asarray(found.g)[b > 0] - g[b > 0]
        np.testing.assert_allclose(gap - gap.mean(), 0, atol=1e-4)
        polished = on_host(
            Potentials, jnp.asarray(g), jnp.asarray(epsilon), 0, jnp.zeros(())
        )

        def upper(c, p, q):
            return certify_cost(lambda r: r, c[None], p[None], q, polished).upper

        gradient = jax.device_get(jax.grad(upper, argnums=(0, 1, 2))(cost, p, q))
    return cost, a, b, epsilon, value, f, g, gradient


def test_gradient_in_closed_form(converged):
    """By cost the plan, by masses the soft potentials, up to a constant that equal
    totals remove.
    """
    cost, a, b, epsilon, _, f, g, (by_cost, by_a, by_b) = converged
    plan = (
        a[:, None] * np.exp((f[:, None] + g[None] - cost) / epsilon) * b[None] / b.sum()
    )
    np.testing.assert_allclose(by_cost, plan, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(by_a, f, rtol=1e-9)
    np.testing.assert_allclose(by_b[b > 0], g[b > 0], rtol=1e-9)
    assert np.isfinite(by_a[a == 0]).all()


@pytest.mark.parametrize("which", ["cost", "source", "target", "both", "into_zero"])
def test_gradient_by_central_difference_of_the_converged_cost(converged, which):
    cost, a, b, epsilon, _, _, _, gradient = converged
    rng = np.random.default_rng(0)
    move = [np.zeros_like(cost), np.zeros_like(a), np.zeros_like(b)]
    if which == "cost":
        move[0] = rng.normal(size=cost.shape)
    elif which == "source":
        move[1] = a * rng.normal(size=N)  # masses stay positive
        move[1][np.argmax(a)] -= move[1].sum()
    elif which == "target":
        move[2] = b * rng.normal(size=M)
        move[2][np.argmax(b)] -= move[2].sum()
    elif which == "both":
        move[1], move[2] = a, b  # more of everything: the cost is linear in the total
    else:
        move[1][4], move[1][np.argmax(a)] = (
            1.0,
            -1.0,
        )  # mass for an item that has none: one-sided

    def at(s):
        return entropic(cost + s * move[0], a + s * move[1], b + s * move[2], epsilon)[
            0
        ]

    h = 1e-6
    numeric = (
        (at(h) - at(0)) / h if which == "into_zero" else (at(h) - at(-h)) / (2 * h)
    )
    slope = sum(np.sum(g * d) for g, d in zip(gradient, move, strict=True))
    np.testing.assert_allclose(
        slope, numeric, rtol=2e-4 if which == "into_zero" else 1e-6, atol=1e-8
    )


def test_entropic_reference_agrees_with_pot(converged):
    cost, a, b, epsilon, value, *_ = converged
    rows, columns = a > 0, b > 0
    p, q, c = a[rows] / MASS, b[columns] / MASS, cost[np.ix_(rows, columns)]
    plan = ot.sinkhorn(
        p, q, c, epsilon, method="sinkhorn_log", numItermax=100_000, stopThr=1e-13
    )
    total = (plan * c).sum() + epsilon * (plan * np.log(plan / np.outer(p, q))).sum()
    np.testing.assert_allclose(value, MASS * total, rtol=1e-8)
