"""`bound_terms` from the side of its callers: label gradients, tiles, lanes of a batch,
sharded rows, odd padding.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tta_jax as tta
from tests.bounds.test_chain import random_case
from tta_jax.bounds.chain import RUNGS
from tta_jax.tasks.task import Samples

SHAPE = (4, 3, 5, 30, 24)
PARTS = (
    "tight",
    "transformed_source_loss",
    "reweighted_source_loss",
    "label_mismatch",
    "target_loss",
)


def case_of(family, seed, dtype=jnp.float64):
    """Inner points: no zeros in B, no duplicates, a sample of every class."""
    rng = np.random.default_rng(seed)
    transforms, source, head, target = random_case(SHAPE, family, seed)
    log_j = np.log(rng.dirichlet(np.ones(12)).reshape(3, 4))
    source = Samples(rng.normal(size=(30, 5)), np.arange(30) % 4, source.mask)
    target = Samples(rng.normal(size=(24, 5)), np.arange(24) % 3, target.mask)
    head = tta.SoftmaxHead(rng.normal(size=(4, 5)), rng.normal(size=4))
    case = (
        tta.Transforms(log_j, transforms.feature_map, transforms.floor),
        source,
        head,
        target,
    )
    return jax.tree.map(
        lambda v: (
            jnp.asarray(v, dtype) if np.asarray(v).dtype.kind == "f" else jnp.asarray(v)
        ),
        case,
    )


@pytest.mark.parametrize("shared", [True, False])
def test_gradients_by_the_coupling(shared, x64):
    """All parts at once: the Jacobian with respect to log J, along random
    directions.
    """
    transforms, source, head, target = case_of("diagonal", 20)
    log_j = transforms.log_joint
    if not shared:
        # Every source class serves one target class: the rows then follow the sample's
        # prior.
        log_j = jnp.where(
            np.array([0, 1, 2, 2]) == np.arange(3)[:, None], log_j, -jnp.inf
        )
    finite = jnp.isfinite(log_j)

    @jax.jit
    def parts(free):
        moved = tta.Transforms(
            jnp.where(finite, free, -jnp.inf), transforms.feature_map, transforms.floor
        )
        bound = tta.bound_terms(moved, source, head, target, rungs="tight")
        return jnp.stack([getattr(bound, name) for name in PARTS])

    rng = np.random.default_rng(0)
    start, direction = jnp.where(finite, log_j, 0.0), rng.normal(size=log_j.shape)
    numeric = (parts(start + 1e-6 * direction) - parts(start - 1e-6 * direction)) / 2e-6
    backward = jnp.tensordot(jax.jacrev(parts)(start), direction, 2)
    np.testing.assert_allclose(backward, numeric, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(
        jax.jvp(parts, (start,), (jnp.asarray(direction),))[1],
        backward,
        rtol=1e-10,
        atol=1e-12,
    )


@pytest.mark.slow
def test_tiles_change_neither_values_nor_gradients(x64):
    transforms, source, head, target = case_of("diagonal", 21)

    def total(z, h, tile):
        bound = tta.bound_terms(
            transforms, source._replace(features=z), h, target, epsilon=0.1, tile=tile
        )
        return bound.directed + bound.oscillation + bound.theorem

    both = jax.jit(jax.value_and_grad(total, argnums=(0, 1)), static_argnums=2)
    dense, tiled = (both(source.features, head, tile) for tile in (None, 8))
    # Two solvers stop at slightly different potentials; the gradients follow them.
    np.testing.assert_allclose(dense[0], tiled[0], rtol=1e-3)
    for a, b in zip(jax.tree.leaves(dense[1]), jax.tree.leaves(tiled[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=0.02 * np.abs(a).max())


def test_forward_mode_of_all_rungs_in_float32():
    transforms, source, head, target = case_of("diagonal", 22, jnp.float32)

    def value(z):
        return tta.bound_terms(
            transforms, source._replace(features=z), head, target, epsilon=0.1
        )

    tangent = jnp.ones_like(source.features)
    bound, slopes = jax.jit(lambda z: jax.jvp(value, (z,), (tangent,)))(source.features)
    assert bound.theorem.dtype == jnp.float32
    backward = jax.jit(jax.grad(lambda z: value(z).theorem))(source.features)
    np.testing.assert_allclose(slopes.theorem, jnp.sum(backward), rtol=1e-3, atol=1e-4)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


def test_float32_agrees_with_float64():
    run = jax.jit(lambda case: tta.bound_terms(*case, epsilon=0.1, capacity=8))
    narrow = run(case_of("dense", 23, jnp.float32))
    with jax.enable_x64(True):
        wide = jax.device_get(run(case_of("dense", 23)))
    for a, b in zip(jax.tree.leaves(narrow), jax.tree.leaves(wide), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3)


def test_one_bad_pair_does_not_spoil_the_batch(x64):
    cases = [case_of("diagonal", seed) for seed in (24, 25, 26)]
    good = [tta.bound_terms(*case, rungs="tight").tight for case in cases]
    bad = cases[1][1]._replace(features=cases[1][1].features * jnp.nan)
    cases[1] = (cases[1][0], bad, *cases[1][2:])
    batch = jax.jit(jax.vmap(lambda c: tta.bound_terms(*c, rungs="tight").tight))(
        jax.tree.map(lambda *v: jnp.stack(v), *cases)
    )
    np.testing.assert_allclose(
        batch[jnp.asarray([0, 2])], [good[0], good[2]], rtol=1e-12
    )
    assert np.isnan(batch[1])


def test_rows_sharded_over_devices(x64):
    """One pair whose items are spread over 8 devices; the same function, the same
    values.
    """
    transforms, source, head, target = case_of("diagonal", 27)
    source, target = (Samples(*(v[:24] for v in s)) for s in (source, target))
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("rows",))

    def spread(s):
        return jax.device_put(s, jax.NamedSharding(mesh, jax.P("rows")))

    evaluate = jax.jit(
        lambda s, t: tta.bound_terms(transforms, s, head, t, rungs="tight")
    )
    one, many = evaluate(source, target), evaluate(spread(source), spread(target))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_labels_of_rows_that_do_not_count_are_free(x64):
    transforms, source, head, target = case_of("diagonal", 28)
    mask = jnp.arange(30) % 5 > 0
    some = tta.bound_terms(
        transforms, source._replace(mask=mask), head, target, rungs="tight"
    )
    for junk in (-1, 99):
        odd = source._replace(mask=mask, labels=jnp.where(mask, source.labels, junk))
        other = tta.bound_terms(transforms, odd, head, target, rungs="tight")
        np.testing.assert_allclose(
            jax.tree.leaves(some), jax.tree.leaves(other), rtol=1e-12
        )


def test_capacity_under_jit(x64):
    case = case_of("diagonal", 29)

    def run(capacity):
        return jax.jit(
            lambda c: tta.bound_terms(*c, rungs="tight", capacity=capacity).tight
        )(case)

    expected = tta.bound_terms(*case, rungs="tight").tight
    np.testing.assert_allclose(
        run(8), expected, rtol=1e-12
    )  # exactly the largest class
    np.testing.assert_allclose(run(None), expected, rtol=1e-12)
    assert np.isnan(run(7))


@pytest.mark.slow
def test_a_target_class_without_items_leaves_the_others_alone(x64):
    transforms, source, head, target = case_of("diagonal", 30)
    two = target._replace(labels=jnp.arange(24) % 2)
    pure, certified = (
        tta.bound_terms(transforms, source, head, two),
        tta.certify(transforms, source, head, two).bound,
    )
    for name in ("target_loss", *RUNGS):
        np.testing.assert_allclose(
            getattr(pure, name), getattr(certified, name), rtol=1e-3, err_msg=name
        )

    def value(z):
        return tta.bound_terms(
            transforms, source._replace(features=z), head, two
        ).theorem

    gradient = jax.jit(jax.grad(value))
    assert np.isfinite(gradient(source.features)).all()


def test_a_target_class_that_cannot_be_served_is_not_left_out_silently(x64):
    """`certify` refuses it; a pure function cannot raise, but must not return a bound
    on the other classes alone.
    """
    transforms, source, head, target = case_of("diagonal", 31)
    only = jnp.where(np.eye(3, 4) > 0, 0.0, -jnp.inf) - jnp.log(3)
    source = source._replace(
        labels=jnp.arange(30) % 2
    )  # no sample of the class that serves target class 2
    served = tta.Transforms(only, transforms.feature_map)
    with pytest.raises(
        ValueError, match="draws only on source classes without samples"
    ):
        tta.certify(served, source, head, target)
    bound = tta.bound_terms(served, source, head, target, rungs="tight")
    assert not np.isfinite(bound.tight)
    assert not np.isfinite(bound.target_loss)


def test_rows_without_any_target_are_no_zero_bound(x64):
    transforms, source, head, target = case_of("diagonal", 32)
    bound = tta.bound_terms(
        transforms,
        source,
        head,
        target._replace(mask=jnp.zeros(24, bool)),
        rungs="tight",
    )
    assert not np.isfinite(bound.tight)
