"""Heads: the constant by brute force, regression against scikit-learn, constraints and
invariances.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads
from sklearn.linear_model import LogisticRegression

import tta_jax as tta
from tta_jax.core.heads import SoftmaxHead, own_losses, pairwise_norm
from tta_jax.core.linalg import solve_positive
from tta_jax.fitting.logistic_regression import minimise_cross_entropy

seeds = st.integers(0, 2**31 - 1)
constant = jax.jit(tta.lipschitz_constant)


def brute_force(rows, active=None):
    rows = np.asarray(rows, np.float64)
    keep = range(len(rows)) if active is None else np.flatnonzero(active)
    return max(
        (np.linalg.norm(rows[j] - rows[k]) for j, k in itertools.product(keep, keep)),
        default=0.0,
    )


@given(seeds, st.sampled_from([1e-150, 1.0, 1e150]))
def test_constant_is_the_largest_difference_of_rows(seed, scale):
    rng = np.random.default_rng(seed)
    rows, active = rng.normal(size=(5, 3)), rng.random(5) < 0.6
    rows[1] = rows[0]
    with jax.enable_x64(True):
        found = float(constant(rows * scale, active))
    np.testing.assert_allclose(found, brute_force(rows, active) * scale, rtol=1e-12)


def test_constant_of_equal_rows_is_zero_with_zero_gradient(x64):
    rows = jnp.ones((3, 2))
    assert constant(rows) == 0
    np.testing.assert_array_equal(jax.grad(tta.lipschitz_constant)(rows), 0)


def test_constant_has_no_cancellation(x64):
    rows = 1e8 + np.array([[0.0, 0.0], [1e-6, 0.0]])
    np.testing.assert_allclose(
        pairwise_norm(jnp.asarray(rows)), brute_force(rows), rtol=1e-12
    )


def blobs(n=150, d=4, k=3, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    y = np.r_[np.arange(k), rng.choice(k, n - k, p=[0.7, 0.2, 0.1])]
    x = spread * rng.normal(size=(n, d)) + 2 * np.eye(k, d)[y]
    return ((x - x.mean(0)) / x.std(0)).astype(np.float32), y


@pytest.mark.parametrize("l2", [1.0, 1e-1, 1e-3])
def test_equals_scikit_learn_for_every_decay(l2):
    x, y = blobs()
    head = tta.fit_head(tta.Task.from_arrays(x, y), l2=l2)
    other = LogisticRegression(C=1 / (l2 * len(y)), tol=1e-10, max_iter=10_000).fit(
        x, y
    )
    np.testing.assert_allclose(head.predict_proba(x), other.predict_proba(x), atol=1e-3)
    np.testing.assert_allclose(head.weight, other.coef_, atol=5e-3)


def test_units_of_the_features_do_not_matter():
    """Decay counts per standardised feature, so a feature in other units, or shifted,
    gives the same classifier.
    """
    x, y = blobs()
    # Within the floor of a tenth of the median deviation, below which features count as
    # nearly dead.
    unit, shift = (
        np.array([3.0, 0.5, 1.0, 2.0], np.float32),
        np.array([0.0, 3.0, -1.0, 20.0], np.float32),
    )
    plain, other = (
        tta.fit_head(tta.Task.from_arrays(v, y), l2=0.01) for v in (x, x * unit + shift)
    )
    np.testing.assert_allclose(
        plain.predict_proba(x), other.predict_proba(x * unit + shift), atol=2e-3
    )


def test_unlabelled_items_and_inactive_classes_are_left_out():
    x, y = blobs()
    known = np.arange(len(y)) % 3 > 0
    start, every = SoftmaxHead(jnp.zeros((3, 4)), jnp.zeros(3)), jnp.ones(3, bool)

    def fit(v, t, w, active):
        return minimise_cross_entropy(
            start, v, t, w, active, jnp.float32(0.01), jnp.float32(np.inf)
        )

    masked = fit(
        x, jnp.asarray(np.where(known, y, 0)), jnp.asarray(known, jnp.float32), every
    )
    only = fit(
        x[known], jnp.asarray(y[known]), jnp.full(known.sum(), 7.0), every
    )  # the weights' scale is free
    np.testing.assert_allclose(masked.weight, only.weight, atol=2e-3)
    two = fit(
        x,
        jnp.asarray(y),
        jnp.asarray(y < 2, jnp.float32),
        jnp.asarray([True, True, False]),
    )
    assert np.all(two.weight[2] == 0)
    assert np.isfinite(two.bias).all()
    assert np.abs(two.weight[:2]).max() > 0.1


@pytest.mark.parametrize("tau", [1e-3, 0.3, 50.0, 1e6])
def test_lipschitz_is_respected_on_raw_features_and_binds_only_where_it_must(tau):
    x, y = blobs()
    task = tta.Task.from_arrays(x * 3, y)
    head = tta.fit_head(task, lipschitz=tau, l2=1e-3)
    assert np.isfinite(head.weight).all()
    # In float64; the head itself is float32, so one rounding of its weights is all that
    # may be missing.
    assert brute_force(head.weight) <= tau * (1 + 4 * np.finfo(np.float32).eps)
    if tau < 1:
        np.testing.assert_allclose(
            brute_force(head.weight), tau, rtol=1e-4
        )  # more would lower the loss


def test_separable_points_give_a_finite_head_that_separates():
    x, y = blobs(spread=0.01)
    head = tta.fit_head(tta.Task.from_arrays(x, y), l2=1e-5)
    assert np.isfinite(head.weight).all()
    assert (np.asarray(head.logits(x)).argmax(1) == y).all()


def test_same_key_same_bits():
    task = tta.Task.from_arrays(*blobs())
    first, again = (tta.fit_head(task, key=jax.random.key(3)) for _ in range(2))
    np.testing.assert_array_equal(first.weight, again.weight)


def test_own_losses_and_probabilities(x64):
    rng = np.random.default_rng(0)
    weight, bias, x = (rng.normal(size=size) for size in ((3, 4), (3,), (5, 4)))
    y = np.arange(5) % 3
    head = SoftmaxHead(weight, bias)
    s = x @ weight.T + bias
    p = np.exp(s) / np.exp(s).sum(1, keepdims=True)
    np.testing.assert_allclose(head.predict_proba(x), p)
    np.testing.assert_allclose(
        own_losses(head, jnp.asarray(x), jnp.asarray(y), jnp.ones(3, bool)),
        -np.log(p[np.arange(5), y]),
    )


@pytest.mark.parametrize(
    ("weight", "bias", "words"),
    [
        (np.ones((4, 3)), None, "transposed"),
        (np.ones((3, 5)), None, r"\(3, 5\).*expected \(3, 4\)"),
        (np.ones((3, 4)), np.ones(4), "bias"),
        (np.full((3, 4), np.nan), None, "NaN"),
        (np.ones((3, 4)), np.full(3, np.inf), "infinity"),
    ],
)
def test_heads_of_the_wrong_kind_are_refused(weight, bias, words):
    with pytest.raises(ValueError, match=f"head: .*{words}|head: {words}"):
        SoftmaxHead.checked(weight, bias, 3, 4)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match=r"source: .*at least 2"):
        tta.fit_head(tta.Task.from_arrays(np.ones((4, 2)), np.zeros(4, int)))


def positive(seed, *sizes):
    factor = np.random.default_rng(seed).normal(size=(*sizes, sizes[-1]))
    return jnp.asarray(factor @ np.swapaxes(factor, -1, -2) + np.eye(sizes[-1]))


def test_positive_systems_are_solved_with_gradients_of_both_kinds(x64):
    matrices, rows = (
        positive(0, 4, 6),
        jnp.asarray(np.random.default_rng(1).normal(size=(4, 6, 2))),
    )
    np.testing.assert_allclose(
        jax.vmap(solve_positive)(matrices, rows),
        np.linalg.solve(matrices, rows),
        rtol=1e-9,
    )

    # Only the symmetric part is looked at.
    def solve(a, b):
        return solve_positive(jnp.asarray((a + a.T) / 2 + jnp.eye(6)), jnp.asarray(b))

    check_grads(solve, (matrices[0], rows[0]), 2, modes=("fwd", "rev"), rtol=1e-5)
    slopes = jax.vmap(jax.grad(lambda a, b: jnp.sum(solve(a, b) ** 2)))(matrices, rows)
    assert slopes.shape == (4, 6, 6)


def test_batches_of_systems_are_no_batches_in_lapack():
    """They would wait for each other in XLA's threads, for ever where there are few."""
    matrices, rows = (
        positive(0, 4, 6).astype(jnp.float32),
        jnp.ones((4, 6, 2), jnp.float32),
    )
    program = (
        jax.jit(jax.vmap(solve_positive)).lower(matrices, rows).compile().as_text()
    )
    assert program is not None
    calls = [
        line
        for line in program.splitlines()
        if "lapack_spotrf" in line or "blas_strsm" in line
    ]
    assert calls
    assert not any("f32[4,6" in line for line in calls)
