"""The chain in the star: closed forms against POT, the law, gradients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import numpy_chain as oracle
from tta_jax.bounds import star
from tta_jax.bounds.chain import RUNGS

N, M, K = 40, 24, 4
seeds = st.integers(0, 2**31 - 1)


def random_items(rng, labels, log_p, ties):
    """Items near their own branch more often than not; ties and centres included."""
    n = len(labels)
    branch = np.where(rng.random(n) < 0.6, labels, rng.integers(0, K, n))
    radius = rng.random(n)
    if ties:
        radius = np.round(radius * 3) / 3
    mass = np.exp(log_p)[labels] / np.bincount(labels, minlength=K)[labels]
    return star.StarItems(
        branch.astype(np.int32), radius, labels.astype(np.int32), mass
    )


def random_pair(seed):
    rng = np.random.default_rng(seed)
    log_p = np.log(rng.dirichlet(np.full(K, 3.0)))
    ties = rng.random() < 0.5
    items = [
        random_items(
            rng, np.r_[np.arange(K), rng.integers(0, K, size - K)], log_p, ties
        )
        for size in (N, M)
    ]
    return *items, log_p, float(rng.choice([0.0, 0.3, 2.0, 12.0]))


def points(items):
    """`rho e_a`, `(n, K)`."""
    return np.asarray(items.radius)[:, None] * np.eye(K)[np.asarray(items.branch)]


def exact(source, target, log_p, scale):
    """Every figure from points in `R^K`, plain softmax and POT."""
    x, u = points(source), points(target)
    v = np.asarray(target.labels)
    found = {"target_loss": 0.0, "source_loss": 0.0, "symmetric": 0.0, "directed": 0.0}
    found["tight"] = 0.0
    logits_s, logits_t = scale * x + log_p, scale * u + log_p
    for t in range(K):
        rows, columns = np.flatnonzero(np.asarray(source.labels) == t), v == t
        q, r = np.asarray(source.mass)[rows], np.asarray(target.mass)[columns]
        f = -oracle.log_softmax(logits_s[rows])[:, t]
        g = -oracle.log_softmax(logits_t[columns])[:, t]
        found["source_loss"] += q @ f
        found["target_loss"] += r @ g
        found["tight"] += oracle.quantile_max(f, q, g, r)
        distance = np.abs(x[rows][:, None] - u[columns][None]).sum(2)
        found["symmetric"] += oracle.exact_transport(distance, q, r)
        rise = logits_t[columns][None] - logits_s[rows][:, None]
        cost = rise.max(2) - rise[:, :, t]
        found["directed"] += oracle.exact_transport(cost, q, r)
    return found


chain = jax.jit(star.star_chain)
informative_excess = jax.jit(star.informative_excess)
theorems = jax.jit(
    lambda source, target, log_p, scales: jax.vmap(
        lambda scale: star.star_chain(source, target, log_p, scale).theorem
    )(scales)
)


@settings(max_examples=250)
@given(seeds)
def test_closed_forms_are_exact_transports_and_the_chain_holds(seed):
    source, target, log_p, scale = random_pair(seed)
    with jax.enable_x64(True):
        bound = jax.device_get(chain(source, target, log_p, scale))
    wanted = exact(source, target, log_p, scale)
    for name, value in {
        "target_loss": wanted["target_loss"],
        "tight": wanted["tight"],
        "transformed_source_loss": wanted["source_loss"],
        "wasserstein": wanted["symmetric"],
        "directed_wasserstein": wanted["directed"],
        "theorem": wanted["source_loss"] + scale * wanted["symmetric"],
    }.items():
        np.testing.assert_allclose(
            getattr(bound, name), value, rtol=1e-9, atol=1e-9, err_msg=name
        )
    figures = [bound.target_loss, *(getattr(bound, name) for name in RUNGS)]
    for low, high in itertools.pairwise(figures):
        assert low <= high + 1e-12 * (1 + abs(low))
    assert bound.oscillation == bound.lipschitz == bound.theorem
    worst = scale - log_p.min()
    assert bound.target_loss <= worst + 1e-12


@given(seeds)
def test_a_scale_is_informative_exactly_if_the_source_is_more_certain_than_far(seed):
    source, target, log_p, _ = random_pair(seed)
    scales = np.geomspace(1e-4, 20, 60)
    with jax.enable_x64(True):
        excess = float(informative_excess(source, target, log_p))
        values = np.asarray(theorems(source, target, log_p, scales))
        none = jax.device_get(chain(source, target, log_p, 0.0))
    np.testing.assert_allclose(none.theorem, none.prior_entropy, rtol=1e-9)
    # Convex in the scale, so what falls at 0 is what falls anywhere.
    assert (np.diff(np.diff(values) / np.diff(scales)) >= -1e-9).all()
    if excess > 1e-3:
        assert values.min() < none.prior_entropy
    if excess < 0:
        assert values.min() >= none.prior_entropy - 1e-12


def test_a_task_is_at_no_distance_from_itself_and_padding_counts_for_nothing(x64):
    source, target, log_p, _ = random_pair(3)
    alone = chain(source, source, log_p, 4.0)
    np.testing.assert_allclose(alone.theorem, alone.target_loss, rtol=1e-12)

    def padded(items):
        more = star.StarItems(
            jnp.array([2, 0], jnp.int32),
            jnp.array([1.0, 0.5]),
            jnp.array([1, 3], jnp.int32),
            jnp.zeros(2),
        )
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), items, more)

    plain = chain(source, target, log_p, 4.0)
    other = chain(padded(source), padded(target), log_p, 4.0)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("rung", ["target_loss", *RUNGS])
def test_gradients_by_central_differences(rung, x64):
    source, target, log_p, _ = random_pair(11)
    rng = np.random.default_rng(0)
    source, target = (
        items._replace(radius=jnp.asarray(rng.random(len(items.radius))))
        for items in (source, target)
    )

    def value(leaves):
        near, far, scale = leaves
        return getattr(
            chain(
                source._replace(radius=near), target._replace(radius=far), log_p, scale
            ),
            rung,
        )

    leaves = (source.radius, target.radius, jnp.asarray(3.0))
    direction = jax.tree.map(lambda v: jnp.asarray(rng.normal(size=v.shape)), leaves)

    def moved(step):
        return value(jax.tree.map(lambda v, d: v + step * d, leaves, direction))

    numeric = (moved(1e-7) - moved(-1e-7)) / 2e-7
    slope = jax.jvp(value, (leaves,), (direction,))[1]
    np.testing.assert_allclose(slope, numeric, rtol=1e-5)
    grads = jax.tree.map(
        lambda g, d: jnp.sum(g * d), jax.grad(value)(leaves), direction
    )
    np.testing.assert_allclose(sum(jax.tree.leaves(grads)), slope, rtol=1e-9)


@given(seeds)
def test_items_are_placed_by_their_certainty(seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(N, K)) * 3
    with jax.enable_x64(True):
        labels, mass = jnp.zeros(N, jnp.int32), jnp.full(N, 1 / N)
        ramp, step = (
            star.star_items(jnp.asarray(logits), labels, mass, jnp.array(cut))
            for cut in ([0.4, 0.8], [0.6, 0.6])
        )
    certainty = np.exp(oracle.log_softmax(logits)).max(1)
    np.testing.assert_array_equal(ramp.branch, logits.argmax(1))
    np.testing.assert_allclose(
        ramp.radius, np.clip((certainty - 0.4) / 0.4, 0, 1), atol=1e-12
    )
    np.testing.assert_array_equal(step.radius, certainty >= 0.6)


def test_pairs_in_a_batch_are_each_alone(x64):
    pairs = [random_pair(seed) for seed in range(4)]
    stacked = jax.tree.map(lambda *v: jnp.stack(v), *pairs)
    batch = jax.jit(jax.vmap(star.star_chain))(*stacked)
    for number, pair in enumerate(pairs):
        alone = chain(*pair)
        for name in ("target_loss", *RUNGS):
            np.testing.assert_allclose(
                getattr(batch, name)[number], getattr(alone, name), rtol=1e-12
            )
