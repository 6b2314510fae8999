"""Couplings, maps, terms and transport: laws, closed forms, brute force, and gradients
by finite difference.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tta_jax as tta
from tests.reference import numpy_chain as oracle
from tests.typed import on_host
from tta_jax.core import coupling, feature_maps
from tta_jax.core import losses as core_losses
from tta_jax.core.heads import SoftmaxHead
from tta_jax.transport.certified_cost import certify_cost, propose, split_rows
from tta_jax.transport.sinkhorn import sinkhorn, soft_c_transform

seeds = st.integers(0, 2**31 - 1)


def central(function, x, direction, step=1e-6):
    return (function(x + step * direction) - function(x - step * direction)) / (
        2 * step
    )


# -- coupling --------------------------------------------------------------------------


@jax.jit
def views(theta, log_p):
    log_j = coupling.log_coupling(theta, log_p)

    def mismatch(t):
        return coupling.label_mismatch(coupling.log_coupling(t, log_p))

    value, gradient = jax.value_and_grad(mismatch)(theta)
    return (
        coupling.label_mixing(log_j),
        jnp.exp(coupling.log_source_prior(log_j)),
        value,
        gradient,
    )


@given(
    seeds,
    st.sampled_from([(2, 5), (5, 2), (3, 3)]),
    st.sampled_from([1.0, 30.0, 400.0]),
)
def test_coupling_is_consistent_however_extreme(seed, shape, scale):
    rng = np.random.default_rng(seed)
    theta, p = rng.normal(size=shape) * scale, rng.dirichlet(np.ones(shape[0]))
    theta[0, 0] = -np.inf
    with jax.enable_x64(True):
        b, d, mismatch, gradient = jax.device_get(views(theta, np.log(p)))
    np.testing.assert_allclose(b.sum(0), 1, rtol=1e-12)
    np.testing.assert_allclose(b @ d, p, rtol=1e-12)
    assert mismatch >= 0
    assert np.isfinite(gradient).all()


def test_absent_classes_get_no_mass_and_finite_gradients(x64):
    theta, log_p = jnp.zeros((3, 4)), jnp.log(jnp.asarray([0.5, 0.5, 0.0]))
    present = jnp.asarray([True, False, True, True])

    def value(t):
        return coupling.label_mismatch(coupling.log_coupling(t, log_p, present))

    log_j = coupling.log_coupling(theta, log_p, present)
    assert np.exp(log_j)[:, 1].sum() == 0
    assert np.exp(log_j)[2].sum() == 0
    assert np.isfinite(jax.grad(value)(theta)).all()


assign = jax.jit(coupling.assign)


@given(seeds, st.sampled_from([(2, 4), (4, 4), (5, 3)]))
def test_assignment_is_cheapest(seed, shape):
    from itertools import permutations

    k_t, k_s = shape
    cost = np.random.default_rng(seed).normal(size=(k_t, k_s)).astype(np.float32)
    found = np.asarray(assign(cost, np.ones(k_s, bool)))
    total = cost[np.arange(k_t), found].sum()
    if k_s >= k_t:
        assert len(set(found)) == k_t
        best = min(
            cost[np.arange(k_t), list(p)].sum() for p in permutations(range(k_s), k_t)
        )
        assert total <= best + 1e-5
    else:
        assert set(found) == set(range(k_s))


# -- maps ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(feature_maps.FAMILIES))
def test_every_family_inverts_pulls_and_differentiates(family, x64):
    rng = np.random.default_rng(0)
    phi = feature_maps.FAMILIES[family](5, jax.random.key(0))
    phi = jax.tree.map(
        lambda v: jnp.asarray(v, jnp.float64) + 0.3 * rng.normal(size=np.shape(v)), phi
    )
    if family == "rotation":
        phi = feature_maps.Rotation(phi.generator, phi.shift, jnp.asarray(-1.0))
    z = jnp.asarray(rng.normal(size=(7, 5)))
    head = SoftmaxHead(
        jnp.asarray(rng.normal(size=(3, 5))), jnp.asarray(rng.normal(size=3))
    )
    x = jax.jit(lambda p, v: p(v))(phi, z)
    np.testing.assert_allclose(phi.inverse(x), z, atol=1e-8)
    np.testing.assert_allclose(phi(phi.inverse(z)), z, atol=1e-8)
    np.testing.assert_allclose(phi.target_logits(head, x), head.logits(z), atol=1e-8)
    if phi.affine:
        np.testing.assert_allclose(phi.pull(head).logits(x), head.logits(z), atol=1e-8)
    else:
        assert phi.why_not
        with pytest.raises(ValueError, match="not affine"):
            phi.pull(head)
    stacked = jax.tree.map(lambda v: jnp.stack([v, v]), phi)
    np.testing.assert_allclose(
        jax.vmap(lambda p, v: p(v))(stacked, jnp.stack([z, z]))[1], x, atol=1e-10
    )
    leaves, structure = jax.tree.flatten(phi)
    if leaves:

        def value(ls):
            return jnp.sum(
                jnp.sin(jax.tree.unflatten(structure, ls).target_logits(head, z))
            )

        gradient = jax.grad(value)(leaves)
        direction = [jnp.asarray(rng.normal(size=v.shape)) for v in leaves]
        if family == "rotation":
            direction[-1] = jnp.zeros(())  # the reflection is not learned

        def step(s):
            return value([v + s * d for v, d in zip(leaves, direction, strict=True)])

        slope = sum(jnp.sum(g * d) for g, d in zip(gradient, direction, strict=True))
        np.testing.assert_allclose(
            slope, (step(1e-6) - step(-1e-6)) / 2e-6, rtol=1e-5, atol=1e-7
        )


def test_rotation_is_orthogonal_with_the_chosen_sign(x64):
    for flip in (1.0, -1.0):
        generator = jnp.asarray(np.random.default_rng(1).normal(size=(4, 4)))
        matrix = feature_maps.Rotation(
            generator, jnp.zeros(4), jnp.asarray(flip)
        ).matrix
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(4), atol=1e-12)
        assert np.linalg.det(matrix) == pytest.approx(flip)


def test_completion_has_exactly_the_logits_or_says_why_not():
    rng = np.random.default_rng(2)
    head = SoftmaxHead(rng.normal(size=(4, 6)), rng.normal(size=4))
    moments = (rng.normal(size=6), 6.0)
    phi = on_host(
        feature_maps.LogitAffine, rng.normal(size=(4, 6)), rng.normal(size=4)
    ).complete(head, np.ones(4, bool), moments, moments)
    z = rng.normal(size=(9, 6))
    with jax.enable_x64(True):
        x = phi(z)
        np.testing.assert_allclose(phi.inverse(x), z, atol=1e-8)
        gap = np.asarray(phi.target_logits(head, x)) - np.asarray(head.logits(z))
    np.testing.assert_allclose(gap - gap.mean(1, keepdims=True), 0, atol=1e-8)
    low = on_host(
        feature_maps.LogitAffine,
        np.outer(rng.normal(size=4), rng.normal(size=6)),
        np.zeros(4),
    )
    failed = low.complete(head, np.ones(4, bool), moments, moments)
    assert not failed.affine
    assert "rank 1" in failed.why_not
    with pytest.raises(ValueError, match="only its logits"):
        failed(z)


# -- terms -----------------------------------------------------------------------------


quantile_coupling = jax.jit(core_losses.quantile_coupling)


@given(seeds, st.sampled_from([1, 4, 9]), st.sampled_from([1, 7]), st.booleans())
def test_quantile_coupling_is_the_integral_of_the_larger_quantile(seed, n, m, ties):
    rng = np.random.default_rng(seed)
    f, g = rng.exponential(size=n), rng.exponential(size=m)
    if ties:
        f, g = np.round(f), np.round(g)
    q, r = rng.dirichlet(np.ones(n)) * 0.3, rng.dirichlet(np.ones(m)) * 0.3
    q[rng.random(n) < 0.3] = 0
    q = q * 0.3 / q.sum() if q.sum() > 0 else np.full(n, 0.3 / n)
    with jax.enable_x64(True):
        found = float(quantile_coupling(f, q, g, r))
    assert found == pytest.approx(oracle.quantile_max(f, q, g, r), rel=1e-9)
    assert found >= max(f @ q, g @ r) - 1e-12


def test_infinite_losses_give_an_infinite_bound_only_where_they_have_mass(x64):
    f, q = jnp.asarray([1.0, jnp.inf]), jnp.asarray([1.0, 0.0])
    g, r = jnp.asarray([0.5]), jnp.asarray([1.0])
    assert float(core_losses.quantile_coupling(f, q, g, r)) == 1.0
    assert (
        float(core_losses.quantile_coupling(f, jnp.asarray([0.5, 0.5]), g, r)) == np.inf
    )


@pytest.mark.parametrize("cost", ["directed", "oscillation", "euclidean"])
@pytest.mark.parametrize("columns", [1, 3, 16, 37])
def test_pairwise_costs_and_their_gradients(cost, columns, x64):
    rng = np.random.default_rng(3)
    x, y, active = (
        rng.normal(size=(5, columns)),
        rng.normal(size=(4, columns)),
        rng.random(columns) < 0.7,
    )
    active[0] = True
    gap = x[:, None] - y[None]
    if cost == "directed":
        drawn = np.arange(columns) % 3 == 0

        def function(a, b):
            return core_losses.directed_cost(
                a, b, jnp.asarray(drawn), jnp.asarray(active)
            )

        rise = -gap
        expected = rise[:, :, active].max(2) - rise[:, :, active & drawn].min(2)
    elif cost == "oscillation":

        def function(a, b):
            return core_losses.oscillation_cost(a, b, jnp.asarray(active))

        expected = gap[:, :, active].max(2) - gap[:, :, active].min(2)
    else:
        function, expected = core_losses.euclidean_cost, np.sqrt((gap**2).sum(2))
    np.testing.assert_allclose(
        function(jnp.asarray(x), jnp.asarray(y)), expected, rtol=1e-12, atol=1e-14
    )
    weight = jnp.asarray(rng.normal(size=(5, 4)))

    def value(a):
        return jnp.sum(weight * function(a, jnp.asarray(y)))

    direction = jnp.asarray(rng.normal(size=x.shape))
    slope = jnp.sum(jax.grad(value)(jnp.asarray(x)) * direction)
    np.testing.assert_allclose(
        slope, central(value, jnp.asarray(x), direction), rtol=1e-6, atol=1e-8
    )
    np.testing.assert_allclose(
        slope, jax.jvp(value, (jnp.asarray(x),), (direction,))[1], rtol=1e-12
    )


def test_coinciding_points_have_cost_and_gradient_zero(x64):
    x = jnp.ones((2, 3))
    for function in (
        core_losses.euclidean_cost,
        lambda a, b: core_losses.oscillation_cost(a, b, jnp.ones(3, bool)),
    ):
        assert np.all(function(x, x) == 0)
        assert np.isfinite(jax.grad(lambda a: function(a, x).sum())(x)).all()


# -- transport -------------------------------------------------------------------------


def transport_case(seed, n=30, m=20):
    rng = np.random.default_rng(seed)
    cost = np.sqrt(
        ((rng.normal(size=(n, 1, 2)) - rng.normal(size=(1, m, 2))) ** 2).sum(2)
    )
    a, b = rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m))
    a[:3] = 0
    b[:2] = 0
    return (
        jnp.asarray(cost),
        jnp.asarray(a / a.sum() * 0.4),
        jnp.asarray(b / b.sum() * 0.4),
    )


@pytest.mark.parametrize("iterations", [1, 20, 500])
@pytest.mark.parametrize("tile", [None, 7])
def test_certified_interval_contains_the_exact_value_however_early_the_solver_stops(
    iterations, tile, x64
):
    for seed in range(4):
        cost, a, b = transport_case(seed)
        found = propose(
            [lambda c: c], cost, a, b, 0.02, max_iterations=iterations, tile=tile
        )[0]
        tiles, tile_a = split_rows((cost, a), tile or 30)
        value = certify_cost(lambda c: c, tiles, tile_a, b, found)
        exact = oracle.exact_transport(np.asarray(cost), np.asarray(a), np.asarray(b))
        assert float(value.lower) <= exact * (1 + 1e-9)
        assert float(value.upper) >= exact * (1 - 1e-9)
        if iterations == 500:
            assert float(value.upper) <= exact * 1.05


def entropic(cost, a, b, epsilon):
    """The entropic optimum by POT's log-domain Sinkhorn: `<P, C> + eps KL(P | a b)`, a
    smooth function of cost and masses.
    """
    keep_a, keep_b = a > 0, b > 0
    a, b, cost = a[keep_a], b[keep_b], cost[np.ix_(keep_a, keep_b)]
    total = a.sum()
    plan = (
        ot.sinkhorn(
            a / total,
            b / total,
            cost,
            epsilon,
            method="sinkhorn_log",
            numItermax=100_000,
            stopThr=1e-14,
        )
        * total
    )
    return (plan * cost).sum() + epsilon * (
        plan * np.log(plan * total / np.outer(a, b))
    ).sum()


def test_danskin_gradient_three_ways(x64):
    cost, a, b = transport_case(5, 8, 6)
    found = propose([lambda c: c], cost, a, b, 0.1, max_iterations=3000, fixed=True)[0]
    epsilon = float(found.epsilon)

    def value(c, mass):
        return certify_cost(lambda rows: rows, c[None], mass[None], b, found).upper

    by_cost, by_mass = jax.grad(value, argnums=(0, 1))(cost, a)
    assert np.isfinite(by_mass).all()  # also where the mass is zero
    rng = np.random.default_rng(0)
    direction = rng.uniform(size=cost.shape)
    numeric = central(
        lambda c: entropic(np.asarray(c), np.asarray(a), np.asarray(b), epsilon),
        np.asarray(cost),
        direction,
        1e-5,
    )
    np.testing.assert_allclose(
        np.sum(np.asarray(by_cost) * direction), numeric, rtol=2e-3
    )
    shift = np.where(np.asarray(a) > 0, rng.normal(size=8), 0)
    shift -= np.where(
        np.asarray(a) > 0, shift.sum() / (np.asarray(a) > 0).sum(), 0
    )  # keeps the total
    numeric = central(
        lambda q: entropic(np.asarray(cost), np.asarray(q), np.asarray(b), epsilon),
        np.asarray(a),
        shift,
        1e-5,
    )
    np.testing.assert_allclose(np.sum(np.asarray(by_mass) * shift), numeric, rtol=2e-3)
    # Closed form: the derivative with respect to a cost is the plan.
    g = found.g.astype(cost.dtype)
    f = soft_c_transform(cost, g, jnp.log(b / b.sum()), epsilon)
    plan = (
        a[:, None]
        * jnp.exp((f[:, None] + g[None] - cost) / epsilon)
        * (b / b.sum())[None]
    )
    np.testing.assert_allclose(by_cost, plan, atol=1e-4)


def test_warm_start_needs_fewer_iterations(x64):
    cost, a, b = (v.astype(jnp.float32) for v in transport_case(6))
    cold = sinkhorn(cost, a, b, jnp.float32(0.02), max_iterations=2000)
    warm = sinkhorn(cost, a, b, jnp.float32(0.02), start=cold.g, max_iterations=2000)
    assert int(warm.iterations) < int(cold.iterations)


# -- head ------------------------------------------------------------------------------


def test_head_equals_scikit_learns_and_respects_its_lipschitz_constant():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 200)
    x = rng.normal(size=(200, 4)) + np.eye(3, 4)[y]
    x = ((x - x.mean(0)) / x.std(0)).astype(
        np.float32
    )  # standardised, so both penalise the same thing
    task = tta.Task.from_arrays(x, y)
    head = tta.fit_head(task, l2=0.05)
    other = LogisticRegression(C=1 / (0.05 * 200), tol=1e-8, max_iter=5000).fit(x, y)
    np.testing.assert_allclose(
        np.asarray(head.predict_proba(x)), other.predict_proba(x), atol=2e-3
    )
    bound = tta.fit_head(task, lipschitz=0.5, l2=1e-3)
    rows = np.asarray(bound.weight)
    assert max(np.linalg.norm(a - b) for a in rows for b in rows) <= 0.5 * (1 + 1e-5)
    assert float(tta.lipschitz_constant(bound.weight)) == pytest.approx(
        max(np.linalg.norm(a - b) for a in rows for b in rows), rel=1e-5
    )
    bad: dict[str, Any]
    for bad in ({"l2": -1.0}, {"lipschitz": 0.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            tta.fit_head(task, **bad)
