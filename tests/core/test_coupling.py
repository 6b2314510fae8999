"""Views of the coupling against their definitions in NumPy, at zeros and at underflow;
the assignment by brute force.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tta_jax.core import coupling
from tta_jax.core.losses import (
    class_mean,
    expected_loss,
    log_head,
    loss_of_class,
    own_class_losses,
    reweighted_source_loss,
    source_mass,
)

seeds = st.integers(0, 2**31 - 1)
K_T, K_S, N = 3, 4, 12


@given(seeds, st.sampled_from([0.0, 1e-6, 0.05, 0.9]))
def test_a_floor_mixes_the_prior_into_every_column(seed, floor):
    rng = np.random.default_rng(seed)
    theta = np.where(rng.random((K_T, K_S)) < 0.3, -np.inf, rng.normal(size=(K_T, K_S)))
    theta[:, 0] = rng.normal(size=K_T)
    log_p = np.log(rng.dirichlet(np.ones(K_T)))
    present = np.ones(K_S, bool)
    with jax.enable_x64(True):
        log_j = joint(theta, log_p, present)
        found = np.exp(floored(log_j, np.float64(floor)))
        plain = np.asarray(jnp.exp(coupling.log_mixing(log_j)))
        free = np.where(np.isfinite(theta), log_j, 0.0)

        def value(free, floor):
            log_j = jnp.where(np.isfinite(theta), free, -jnp.inf)
            log_b = floored(log_j, floor)
            return jnp.sum(jnp.where(log_b > -jnp.inf, log_b, 0.0))

        slopes = jax.grad(value, argnums=(0, 1))(free, np.float64(floor))
    exact = (1 - floor) * plain + floor * np.exp(log_p)[:, None]
    np.testing.assert_allclose(found, exact, rtol=1e-12)
    used = np.isfinite(theta).any(0)
    np.testing.assert_allclose(found[:, used].sum(0), 1, rtol=1e-12)
    assert all(np.isfinite(v).all() for v in slopes)


floored = jax.jit(coupling.log_floored_mixing)
joint = jax.jit(coupling.log_coupling)


@jax.jit
def views(theta, log_p, present):
    log_j = coupling.log_coupling(theta, log_p, present)
    return {
        "j": jnp.exp(log_j),
        "b": coupling.label_mixing(log_j),
        "log_b": coupling.log_mixing(log_j),
        "log_d": coupling.log_source_prior(log_j),
        "log_p": coupling.log_target_prior(log_j),
        "h": coupling.label_mismatch(log_j),
        "entropy": coupling.entropy(log_p),
    }


def definition(theta, p, present):
    """J, D, B and H by the formulas, with zeros left out."""
    e = np.where(
        np.isfinite(theta) & present, np.exp(theta - theta[np.isfinite(theta)].max()), 0
    )
    with np.errstate(invalid="ignore"):
        j = np.where(p[:, None] > 0, p[:, None] * e / e.sum(1, keepdims=True), 0)
    d = j.sum(0)
    b = np.where(d > 0, j / np.where(d > 0, d, 1), p[:, None])
    used = j > 0
    return j, d, b, -(j[used] * np.log(b[used])).sum()


@given(seeds, st.floats(0.1, 30.0), st.booleans(), st.booleans())
def test_views_equal_their_definitions(seed, scale, absent_source, absent_target):
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=(K_T, K_S)) * scale
    theta[rng.random(theta.shape) < 0.3] = -np.inf
    theta[:, 0] = rng.normal(size=K_T)
    p = rng.dirichlet(np.ones(K_T))
    present = np.ones(K_S, bool)
    if absent_source:
        present[rng.integers(1, K_S)] = False
    if absent_target:
        p[1] = 0
        p /= p.sum()
    with jax.enable_x64(True), np.errstate(divide="ignore"):
        found = jax.device_get(views(theta, np.log(p), present))
    j, d, b, h = definition(theta, p, present)
    np.testing.assert_allclose(found["j"], j, rtol=1e-10, atol=1e-300)
    np.testing.assert_allclose(np.exp(found["log_d"]), d, rtol=1e-10, atol=1e-300)
    np.testing.assert_allclose(np.exp(found["log_p"]), p, rtol=1e-12)
    np.testing.assert_allclose(found["b"], b, rtol=1e-10, atol=1e-300)
    np.testing.assert_allclose(found["b"] @ d, p, rtol=1e-12)
    np.testing.assert_allclose(found["h"], h, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        found["entropy"], -(p[p > 0] * np.log(p[p > 0])).sum(), rtol=1e-12
    )
    # What is forbidden stays exactly zero, in J and in log B.
    assert np.all(found["j"][~np.isfinite(theta)] == 0)
    assert np.all(found["log_b"][~np.isfinite(theta)] == -np.inf)


def test_mixing_has_unit_columns_where_the_numbers_underflow(x64):
    log_j = jnp.asarray([[-900.0, -0.7], [-905.0, -800.0], [-jnp.inf, -0.7]])
    # Numbers near 900 are stored to 1e-13, so their exponentials are exact to that,
    # relatively.
    np.testing.assert_allclose(
        jnp.exp(coupling.log_mixing(log_j)).sum(0), 1, rtol=900 * np.finfo(float).eps
    )
    np.testing.assert_allclose(
        coupling.label_mixing(log_j)[:, 0],
        np.r_[np.exp([0.0, -5]), 0] / (1 + np.exp(-5)),
    )
    for leaf in jax.tree.leaves(
        jax.jacobian(lambda v: (coupling.label_mixing(v), coupling.label_mismatch(v)))(
            log_j
        )
    ):
        assert np.isfinite(leaf).all()


def test_gradients_by_finite_difference_and_zero_where_forbidden(x64):
    rng = np.random.default_rng(1)
    theta = rng.normal(size=(K_T, K_S))
    theta[0, 1] = theta[2, 3] = -np.inf
    log_p, weight = np.log(rng.dirichlet(np.ones(K_T))), rng.normal(size=(K_T, K_S))

    @jax.jit
    def value(free):
        log_j = coupling.log_coupling(
            jnp.where(jnp.isfinite(theta), free, -jnp.inf), jnp.asarray(log_p)
        )
        return coupling.label_mismatch(log_j) + jnp.sum(
            weight * coupling.label_mixing(log_j)
        )

    start = np.where(np.isfinite(theta), theta, 0)
    gradient = np.asarray(jax.grad(value)(start))
    assert np.all(gradient[~np.isfinite(theta)] == 0)
    for index in itertools.product(range(K_T), range(K_S)):
        step = np.zeros_like(start)
        step[index] = 1e-6
        np.testing.assert_allclose(
            gradient[index],
            (value(start + step) - value(start - step)) / 2e-6,
            atol=1e-8,
        )


@jax.jit
def losses_of(theta, log_p, logits, labels):
    log_j = coupling.log_coupling(theta, log_p)
    active = coupling.log_source_prior(log_j) > -jnp.inf
    log_h = log_head(logits, active)
    mask = jnp.ones(N, bool)
    counts = jnp.bincount(labels, length=K_S)
    transformed = sum(
        expected_loss(
            loss_of_class(log_h, coupling.log_mixing(log_j)[t]),
            source_mass(log_j[t], labels, mask, counts),
        )
        for t in range(K_T)
    )
    own, _ = class_mean(own_class_losses(logits, labels, active), labels, mask, K_S)
    return (
        transformed,
        reweighted_source_loss(log_j, own),
        coupling.label_mismatch(log_j),
    )


@given(seeds, st.floats(0.1, 20.0), st.floats(0.0, 0.6))
def test_label_mixing_costs_at_most_the_conditional_entropy(seed, scale, zeros):
    """`E''' <= L_rw(D) + H(Y''|Y')` and `0 <= H <= H(p_T)` for every coupling and head
    (spec, section 2).
    """
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=(K_T, K_S)) * 3
    theta[rng.random(theta.shape) < zeros] = -np.inf
    theta[np.arange(K_T), rng.integers(0, K_S, K_T)] = 0
    p = rng.dirichlet(np.ones(K_T))
    labels = np.r_[np.arange(K_S), rng.integers(0, K_S, N - K_S)]
    with jax.enable_x64(True):
        found = losses_of(theta, np.log(p), rng.normal(size=(N, K_S)) * scale, labels)
        transformed, reweighted, mismatch = map(float, found)
    assert transformed <= reweighted + mismatch + 1e-10 * (1 + reweighted)
    assert -1e-12 <= mismatch <= -(p * np.log(p)).sum() + 1e-12


assign = jax.jit(coupling.assign)


@given(seeds)
def test_absent_classes_are_not_assigned_while_others_remain(seed):
    rng = np.random.default_rng(seed)
    cost = (rng.normal(size=(3, 5)) * 10).astype(np.float32)
    present = np.zeros(5, bool)
    present[rng.permutation(5)[: rng.integers(1, 6)]] = True
    found = np.asarray(assign(cost, present))
    assert present[found].all()
    if present.sum() >= 3:
        best = min(
            cost[np.arange(3), list(p)].sum()
            for p in itertools.permutations(np.flatnonzero(present), 3)
        )
        assert len(set(found)) == 3
        np.testing.assert_allclose(
            cost[np.arange(3), found].sum(), best, rtol=1e-4, atol=1e-4
        )


@given(seeds)
def test_every_source_class_is_used_when_there_are_few(seed):
    """One to one for K_S of the target classes at least cost, the cheapest class for
    the rest.
    """
    cost = np.random.default_rng(seed).normal(size=(5, 3)).astype(np.float32)
    found = np.asarray(assign(cost, np.ones(3, bool)))
    assert set(found) == {0, 1, 2}
    own = [t for t in range(5) if found[t] != cost[t].argmin()]
    assert len(own) <= 3
    best = min(
        cost[list(rows), range(3)].sum() for rows in itertools.permutations(range(5), 3)
    )
    # Some choice of one row for each column costs the minimum and the other rows are at
    # their cheapest.
    options = [
        sum(cost[r, found[r]] for r in rows)
        for rows in itertools.permutations(range(5), 3)
        if list(found[list(rows)]) == [0, 1, 2]
        and all(found[t] == cost[t].argmin() for t in set(range(5)) - set(rows))
    ]
    np.testing.assert_allclose(min(options), best, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sharpness", [None, 4.0])
def test_assignment_logits(sharpness):
    logits = np.asarray(coupling.assignment_logits(jnp.asarray([2, 0]), 3, sharpness))
    assert logits.tolist() == [
        [-(sharpness or np.inf), -(sharpness or np.inf), 0],
        [0, *[-(sharpness or np.inf)] * 2],
    ]
