"""What is chosen for a star: alignment by brute force, distances and cuts against the
closed form.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.typed import anything
from tta_jax.bounds import star
from tta_jax.fitting import relatedness as related

K = 4
seeds = st.integers(0, 2**31 - 1)
align = jax.jit(related.align)
cut_distances = jax.jit(related.cut_distances, static_argnums=2)
choose_star = jax.jit(related.choose_star)
figures = jax.jit(star.star_figures)


def mismatch(source, target, weights, order):
    order = list(order)
    moved = source[order][:, order]
    return float(np.sum(weights[:, None] * np.abs(moved - target)))


@given(seeds)
def test_alignment_ends_where_no_exchange_helps(seed):
    rng = np.random.default_rng(seed)
    source, target = rng.random((2, K, K))
    weights, allowed = rng.dirichlet(np.ones(K)), rng.random(K) < 0.8
    with jax.enable_x64(True):
        order = np.asarray(align(source, target, weights, allowed))
    assert sorted(order) == list(range(K))
    assert (order == np.arange(K))[~allowed].all()
    here = mismatch(source, target, weights, order)
    assert here <= mismatch(source, target, weights, range(K)) + 1e-12
    for i, j in itertools.combinations(np.flatnonzero(allowed), 2):
        other = order.copy()
        other[[i, j]] = other[[j, i]]
        assert here <= mismatch(source, target, weights, other) + 2e-5


def test_alignment_finds_a_hidden_permutation(x64):
    rng = np.random.default_rng(0)
    target = np.eye(K) * rng.uniform(0.3, 0.9, K) + 0.02 * rng.random((K, K))
    hidden = np.array([2, 0, 3, 1])
    source = np.empty_like(target)
    source[np.ix_(hidden, hidden)] = target
    order = align(source, target, np.full(K, 1 / K), np.ones(K, bool))
    np.testing.assert_array_equal(order, hidden)


def random_sample(rng, n, prior):
    """Items whose certainties, from 0 to 1, lie in the middle of levels."""
    labels = np.r_[np.arange(K), rng.integers(0, K, n - K)].astype(np.int32)
    branch = np.where(rng.random(n) < 0.7, labels, rng.integers(0, K, n))
    certainty = (rng.integers(0, 16, n) + 0.5) / 16
    mass = prior[labels] / np.bincount(labels, minlength=K)[labels]
    return star.StarItems(branch.astype(np.int32), certainty, labels, mass)


@given(seeds)
def test_distances_are_those_of_the_closed_form_for_steps_and_near_for_ramps(seed):
    rng = np.random.default_rng(seed)
    prior = rng.dirichlet(np.full(K, 3.0))
    source, target = random_sample(rng, 40, prior), random_sample(rng, 30, prior)
    with jax.enable_x64(True):
        found = np.asarray(cut_distances(source, target, K))
        for (i, cut_s), (j, cut_t) in itertools.product(
            enumerate(related.CUTS), enumerate(related.CUTS)
        ):
            placed = [
                x._replace(
                    radius=np.asarray(
                        star.star_radius(x.radius, anything(np.array(c) / 16))
                    )
                )
                for x, c in ((source, cut_s), (target, cut_t))
            ]
            first, second = jax.tree.map(jnp.asarray, placed)
            moved = star.star_transport(first, second, K)
            steps = cut_s[0] == cut_s[1] and cut_t[0] == cut_t[1]
            error = 1e-12 if steps else 0.15
            for k, name in enumerate(("directed", "symmetric")):
                exact = float(jnp.sum(getattr(moved, name)))
                assert abs(found[k, i, j] - exact) <= error
