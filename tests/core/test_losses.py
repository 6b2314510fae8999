"""Each equation against plain NumPy, and the inequalities that carry the chain, on
random points.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import numpy_chain as oracle
from tta_jax.core import losses as core_losses
from tta_jax.core.heads import lipschitz_constant

seeds = st.integers(0, 2**31 - 1)
N, M, K, D, K_T = 6, 5, 4, 3, 3


def naive_loss(logits, b_row, active):
    h = np.zeros_like(logits)
    h[:, active] = np.exp(oracle.log_softmax(logits[:, active]))
    return -np.log(h @ b_row)


log_head, loss_of_class = (
    jax.jit(core_losses.log_head),
    jax.jit(core_losses.loss_of_class),
)


@given(seeds, st.floats(0.01, 10.0))
def test_head_and_loss_equal_numpy_with_classes_dropped(seed, scale):
    rng = np.random.default_rng(seed)
    logits, active = rng.normal(size=(N, K)) * scale, rng.random(K) < 0.7
    active[rng.integers(K)] = True
    b_row = np.where(active, rng.random(K), 0)
    with jax.enable_x64(True), np.errstate(divide="ignore"):
        log_h = np.asarray(log_head(logits, active))
        losses = np.asarray(loss_of_class(log_h, np.log(b_row)))
    assert np.all(log_h[:, ~active] == -np.inf)
    np.testing.assert_allclose(np.exp(log_h).sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(
        losses, naive_loss(logits, b_row, active), rtol=1e-9, atol=1e-9
    )


def test_losses_stay_exact_where_probabilities_underflow(x64):
    """A probability of e^-5000 is a loss of 5000 nats, not of infinity; its gradient is
    finite as well.
    """
    logits = jnp.asarray([[5000.0, 0.0, 0.0, 0.0]])
    log_b = jnp.asarray([-jnp.inf, 0.0, -jnp.inf, -jnp.inf])

    def loss(s):
        return core_losses.loss_of_class(
            core_losses.log_head(s, jnp.ones(K, bool)), log_b
        )[0]

    np.testing.assert_allclose(loss(logits), 5000.0)
    np.testing.assert_allclose(jax.grad(loss)(logits), [[1.0, -1.0, 0, 0]], atol=1e-12)


@jax.jit
def means_and_masses(values, labels, mask, row):
    mean, count = core_losses.class_mean(values, labels, mask, K)
    return mean, count, core_losses.source_mass(row, labels, mask, count)


@given(seeds)
def test_class_means_and_masses(seed):
    rng = np.random.default_rng(seed)
    labels, mask, values = (
        rng.integers(0, K, N),
        rng.random(N) < 0.7,
        rng.normal(size=N),
    )
    with jax.enable_x64(True):
        row = np.log(rng.dirichlet(np.ones(K)))
        mean, count, q = jax.device_get(means_and_masses(values, labels, mask, row))
    for k in range(K):
        inside = mask & (labels == k)
        assert count[k] == inside.sum()
        assert mean[k] == pytest.approx(values[inside].mean() if inside.any() else 0)
        np.testing.assert_allclose(q[inside], np.exp(row[k]) / max(inside.sum(), 1))
    assert np.all(q[~mask] == 0)


@jax.jit
def slopes(weight, bias, x, other, b):
    """Losses of `B softmax(W x + c)` at two sets of points, their directed and
    oscillation costs, tau and their distance.
    """
    active = jnp.ones(K, bool)

    def log_h(p):
        return core_losses.log_head(p @ weight.T + bias[None], active)

    def loss(p):
        return jax.vmap(lambda row: core_losses.loss_of_class(log_h(p), row))(b)

    logits = x @ weight.T + bias[None], other @ weight.T + bias[None]
    rise = jax.vmap(
        lambda row: core_losses.directed_cost(*logits, row > -jnp.inf, active)
    )(b)
    return (
        loss(x),
        loss(other),
        rise,
        core_losses.oscillation_cost(*logits, active),
        lipschitz_constant(weight),
        core_losses.euclidean_cost(x, other),
    )


@given(seeds, st.floats(1e-3, 1e3), st.floats(1e-6, 10.0))
def test_loss_differences_lie_below_oscillation_below_tau_times_distance(
    seed, sharpness, step
):
    """`l(x', t) - l(x, t) <= delta_t(s' - s) <= osc(s - s') <= tau ||x - x'||` for
    every t and B (docs/theory.md, sections 3.7 and 5.1).
    """
    rng = np.random.default_rng(seed)
    weight, x = rng.normal(size=(K, D)) * sharpness, rng.normal(size=(N, D))
    other = x[:M] + step * rng.normal(size=(M, D))
    b = rng.dirichlet(np.ones(K_T) * 0.3, size=K).T
    b[rng.random(b.shape) < 0.2] = 0
    b[0] += b.sum(0) == 0
    b[:, 0] = 1 / K_T  # every target class has some probability
    with jax.enable_x64(True), np.errstate(divide="ignore"):
        at, there, rise, cost, tau, distance = jax.device_get(
            slopes(weight, rng.normal(size=K), x, other, np.log(b))
        )
    tolerance = 1e-10 * (1 + sharpness)
    assert np.all(there[:, None, :] - at[:, :, None] <= rise + tolerance)
    assert np.all(rise <= cost[None] + tolerance)
    assert np.all(np.abs(at[:, :, None] - there[:, None, :]) <= cost[None] + tolerance)
    assert np.all(cost <= tau * distance + tolerance)
    s = (x[:, None] - other[None]) @ weight.T
    centred = np.linalg.norm(s - s.mean(2, keepdims=True), axis=2)
    assert np.all(cost <= np.sqrt(2) * centred + tolerance)


def test_the_constant_is_attained(x64):
    """tau is not merely valid: two saturated classes far apart reach it, so no smaller
    constant would do.
    """
    weight = jnp.asarray([[3.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, 0, 1]])
    log_b = jnp.log(jnp.asarray([0.0, 1.0, 0.0, 0.0]))

    def loss(x):
        return core_losses.loss_of_class(
            core_losses.log_head((x @ weight.T)[None], jnp.ones(4, bool)), log_b
        )[0]

    slope = jnp.linalg.norm(jax.grad(loss)(jnp.asarray([50.0, 0, 0])))
    np.testing.assert_allclose(slope, lipschitz_constant(weight), rtol=1e-12)


quantile_coupling = jax.jit(core_losses.quantile_coupling)
quantile_gradient = jax.jit(
    jax.grad(core_losses.quantile_coupling, argnums=(0, 1, 2, 3))
)


def quantile_case(seed):
    rng = np.random.default_rng(seed)
    f, g, q, r = (
        rng.exponential(size=N),
        rng.exponential(size=M),
        rng.dirichlet(np.ones(N)),
        rng.dirichlet(np.ones(M)),
    )
    q[0], r[0] = 0, 0
    return rng, f, q / q.sum() * 0.7, g, r / r.sum() * 0.7


@given(seeds)
def test_quantile_coupling_is_an_excess_over_either_side(seed):
    """`int max = E F + int (G^-1 - F^-1)_+ = E G + int (F^-1 - G^-1)_+`, symmetric and
    monotone.
    """
    _, f, q, g, r = quantile_case(seed)
    with jax.enable_x64(True):
        both = float(quantile_coupling(f, q, g, r))
        low = -float(quantile_coupling(-f, q, -g, r))  # int min
        raised = float(quantile_coupling(f + 0.1, q, g, r))
    np.testing.assert_allclose(both + low, f @ q + g @ r, rtol=1e-10)
    assert low - 1e-12 <= min(f @ q, g @ r) <= max(f @ q, g @ r) <= both + 1e-12
    np.testing.assert_allclose(both, oracle.quantile_max(g, r, f, q), rtol=1e-10)
    assert both - 1e-12 <= raised <= both + 0.07 + 1e-12


@given(seeds)
def test_quantile_coupling_is_the_cheapest_coupling_of_positive_differences(seed):
    """The comonotone coupling is optimal: exact transport of the positive part costs as
    much.
    """
    _, f, q, g, r = quantile_case(seed)
    with jax.enable_x64(True):
        tight = float(quantile_coupling(f, q, g, r))
    positive = oracle.exact_transport(np.maximum(g[None] - f[:, None], 0), q, r)
    np.testing.assert_allclose(tight, f @ q + positive, rtol=1e-9)


def test_quantile_gradients_by_finite_difference():
    for seed in range(5):
        rng, f, q, g, r = quantile_case(seed)
        # Masses move along directions that keep both totals equal, losses anywhere.
        dq, dr = rng.normal(size=N) * (q > 0), rng.normal(size=M) * (r > 0)
        dr *= dq.sum() / dr.sum()
        direction = (rng.normal(size=N), dq, rng.normal(size=M), dr)
        with jax.enable_x64(True):
            gradient = jax.device_get(quantile_gradient(f, q, g, r))

            def at(s):
                return float(
                    quantile_coupling(
                        *(
                            v + s * d
                            for v, d in zip((f, q, g, r), direction, strict=True)
                        )
                    )
                )

            numeric = (at(1e-7) - at(-1e-7)) / 2e-7
        slope = sum(np.sum(v * d) for v, d in zip(gradient, direction, strict=True))
        np.testing.assert_allclose(slope, numeric, rtol=1e-6)
        assert gradient[0][0] == 0  # an item without mass


@pytest.mark.parametrize(
    ("f", "g", "expected"),
    [([1, np.inf], [2, 2], np.inf), ([np.inf, np.inf], [0, 0], np.inf)],
)
def test_infinite_losses_with_mass(f, g, expected, x64):
    half = jnp.full(2, 0.5)
    assert (
        float(
            quantile_coupling(jnp.asarray(f, float), half, jnp.asarray(g, float), half)
        )
        == expected
    )


def test_ties_across_both_sides(x64):
    ones = jnp.ones(4)
    assert float(quantile_coupling(ones, ones / 4, ones, ones / 4)) == 1
    steps = jnp.asarray([0.0, 0.0, 1.0, 1.0])
    assert float(quantile_coupling(steps, ones / 4, steps[::-1], ones / 4)) == 0.5


@pytest.mark.parametrize("columns", [2, 17])
def test_costs_are_exact_differences_for_near_duplicates(columns, x64):
    """No cancellation: points 1e-9 apart at 1e6 from the origin are as far apart as
    their stored difference says.
    """
    rng = np.random.default_rng(0)
    x = 1e6 + rng.normal(size=(N, columns))
    y = x[:M] + 1e-9 * rng.normal(size=(M, columns))
    gap = x[:, None] - y[None]
    np.testing.assert_allclose(
        core_losses.euclidean_cost(jnp.asarray(x), jnp.asarray(y)),
        np.linalg.norm(gap, axis=2),
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        core_losses.oscillation_cost(
            jnp.asarray(x), jnp.asarray(y), jnp.ones(columns, bool)
        ),
        gap.max(2) - gap.min(2),
        rtol=1e-12,
    )


@given(seeds)
def test_oscillation_is_a_seminorm(seed):
    """Zero along constants, symmetric, triangle inequality; inactive columns are
    invisible.
    """
    rng = np.random.default_rng(seed)
    x, active = rng.normal(size=(N, K)), np.array([True, True, False, True])
    with jax.enable_x64(True):
        cost = np.asarray(oscillation(x, x, active))
        moved = np.asarray(oscillation(x + rng.normal(size=(N, 1)), x, active))
        x[:, 2] = 1e6 * rng.normal(size=N)
        hidden = np.asarray(oscillation(x, x, active))
    np.testing.assert_allclose(cost, moved, atol=1e-12)
    np.testing.assert_array_equal(cost, hidden)
    np.testing.assert_array_equal(cost, cost.T)
    assert np.all(cost[:, None] <= cost[:, :, None] + cost.T[None] + 1e-12)


oscillation = jax.jit(core_losses.oscillation_cost)


@given(seeds)
def test_directed_cost_charges_only_what_gets_harder(seed):
    """Its definition by brute force; zero where the target's logits only favour the
    classes that carry t; `osc` where every active class carries it.
    """
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(N, K)), rng.normal(size=(M, K))
    active = np.array([True, True, False, True])
    drawn = active & ((rng.random(K) < 0.5) | (np.arange(K) == 1))
    rise = y[None] - x[:, None]
    with jax.enable_x64(True):
        cost = np.asarray(directed(x, y, drawn, active))
        everywhere = np.asarray(directed(x, y, active, active))
        better = np.asarray(directed(x, x + 3.0 * drawn[None], drawn, active))
        same = np.asarray(oscillation(x, y, active))
    brute = rise[:, :, active].max(2) - rise[:, :, drawn].min(2)
    np.testing.assert_allclose(cost, brute, atol=1e-12)
    np.testing.assert_allclose(everywhere, same, atol=1e-12)
    np.testing.assert_allclose(np.diag(better), 0, atol=1e-12)
    assert (cost >= 0).all()


directed = jax.jit(core_losses.directed_cost)


def test_residual_is_the_oscillation_of_the_difference(x64):
    rng = np.random.default_rng(0)
    a, b, active = (
        rng.normal(size=(N, K)),
        rng.normal(size=(N, K)),
        np.array([True, False, True, True]),
    )
    gap = (a - b)[:, active]
    np.testing.assert_allclose(
        core_losses.logit_residual(*map(jnp.asarray, (a, b, active))),
        gap.max(1) - gap.min(1),
    )
