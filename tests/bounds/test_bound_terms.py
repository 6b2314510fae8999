"""`bound_terms` as others use it: under jit, vmap, grad and forward mode, in float32,
and sharded.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tta_jax as tta
from tests.bounds.test_chain import random_case

SHAPE = (4, 3, 5, 30, 24)
EXACT = (
    "target_loss",
    "tight",
    "transformed_source_loss",
    "reweighted_source_loss",
    "label_mismatch",
)


def on_device(case, dtype=jnp.float64):
    return jax.tree.map(
        lambda v: (
            jnp.asarray(v, dtype) if np.asarray(v).dtype.kind == "f" else jnp.asarray(v)
        ),
        case,
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", ["dense", "coupling_layers", "logit_affine"])
def test_equals_the_certificate(family, x64):
    case = random_case(SHAPE, family, 3)
    pure, certified = (
        tta.bound_terms(*on_device(case), max_iterations=300),
        tta.certify(*case, max_iterations=300).bound,
    )
    for a, b in zip(jax.tree.leaves(pure), jax.tree.leaves(certified), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


def test_what_stands_in_rows_that_do_not_count_counts_for_nothing(x64):
    transforms, source, head, target = random_case(SHAPE, "diagonal", 3)

    def padded(s):
        return tta.Samples(
            np.r_[s.features, np.full((2, s.features.shape[1]), np.nan)],
            np.r_[s.labels, [99, -7]],
            np.r_[s.mask, [False] * 2],
        )

    plain = tta.bound_terms(transforms, source, head, target, max_iterations=50)
    other = tta.bound_terms(
        transforms, padded(source), head, padded(target), max_iterations=50
    )
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.slow
def test_jit_vmap_and_sharding_change_nothing(x64):
    cases = [on_device(random_case(SHAPE, "diagonal", seed)) for seed in range(8)]
    stacked = jax.tree.map(lambda *v: jnp.stack(v), *cases)
    evaluate = jax.jit(jax.vmap(lambda c: tta.bound_terms(*c, rungs="tight")))
    batch = evaluate(stacked)
    for i, case in enumerate(cases):
        single = tta.bound_terms(*case, rungs="tight")
        np.testing.assert_allclose(batch.tight[i], single.tight, rtol=1e-10)
    assert len(jax.devices()) == 8
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("pairs",))
    spread = jax.device_put(stacked, jax.NamedSharding(mesh, jax.P("pairs")))
    sharded = evaluate(spread)
    assert len(sharded.tight.sharding.device_set) == 8
    np.testing.assert_allclose(sharded.tight, batch.tight, rtol=1e-10)


def test_upper_rungs_under_jit_and_vmap(x64):
    cases = [on_device(random_case(SHAPE, "dense", seed)) for seed in (1, 2)]
    stacked = jax.tree.map(lambda *v: jnp.stack(v), *cases)
    batch = jax.jit(jax.vmap(lambda c: tta.bound_terms(*c, max_iterations=200)))(
        stacked
    )
    for i, case in enumerate(cases):
        single = tta.bound_terms(*case, max_iterations=200)
        np.testing.assert_allclose(batch.directed[i], single.directed, rtol=1e-4)
        np.testing.assert_allclose(batch.oscillation[i], single.oscillation, rtol=1e-4)
        np.testing.assert_allclose(batch.theorem[i], single.theorem, rtol=1e-4)


@pytest.mark.parametrize("rung", EXACT)
def test_gradients_by_finite_difference(rung, x64):
    transforms, source, head, target = on_device(random_case(SHAPE, "dense", 4))
    transforms = tta.Transforms(
        jnp.where(jnp.isfinite(transforms.log_joint), transforms.log_joint, -6.0),
        transforms.feature_map,
    )
    rng = np.random.default_rng(0)
    # Duplicates give ties between losses, where the bound has a kink: move every item a
    # little.
    source, target = (
        s._replace(features=s.features + 0.1 * rng.normal(size=s.features.shape))
        for s in (source, target)
    )

    def value(leaves):
        z, u, h, phi, floor = leaves
        moved = tta.Transforms(transforms.log_joint, phi, floor)
        bound = tta.bound_terms(
            moved,
            source._replace(features=z),
            h,
            target._replace(features=u),
            rungs="tight",
        )
        return getattr(bound, rung)

    given = (source.features, target.features, head, transforms.feature_map)
    leaves = (*given, jnp.asarray(0.05))
    direction = jax.tree.map(lambda v: jnp.asarray(rng.normal(size=v.shape)), leaves)

    def move(s):
        return value(jax.tree.map(lambda v, d: v + s * d, leaves, direction))

    numeric = (move(1e-6) - move(-1e-6)) / 2e-6
    slopes = jax.tree.map(
        lambda g, d: jnp.sum(g * d), jax.grad(value)(leaves), direction
    )
    np.testing.assert_allclose(
        sum(jax.tree.leaves(slopes)), numeric, rtol=1e-5, atol=1e-7
    )
    np.testing.assert_allclose(
        jax.jvp(value, (leaves,), (direction,))[1], numeric, rtol=1e-5, atol=1e-7
    )


@pytest.mark.slow
def test_upper_rungs_have_finite_gradients_with_zeros_in_the_coupling(x64):
    transforms, source, head, target = on_device(random_case(SHAPE, "diagonal", 5))

    def value(log_joint, phi, h, z):
        moved = tta.Transforms(log_joint, phi)
        bound = tta.bound_terms(
            moved, source._replace(features=z), h, target, max_iterations=100
        )
        return bound.directed + bound.oscillation + bound.theorem

    leaves = (transforms.log_joint, transforms.feature_map, head, source.features)
    for leaf in jax.tree.leaves(jax.grad(value, argnums=(0, 1, 2, 3))(*leaves)):
        assert np.isfinite(leaf).all()
    tangents = jax.tree.map(jnp.ones_like, leaves)
    assert np.isfinite(jax.jvp(value, leaves, tangents)[1])


def test_float32_keeps_the_chain_to_its_rounding():
    case = on_device(random_case(SHAPE, "diagonal", 6), jnp.float32)
    bound = tta.bound_terms(*case)
    assert bound.tight.dtype == jnp.float32
    chain = [
        bound.target_loss,
        bound.tight,
        bound.directed,
        bound.oscillation,
        bound.lipschitz,
        bound.theorem,
    ]
    for low, high in itertools.pairwise(chain):
        assert low <= high + 1e-4 * (1 + abs(low))


def test_a_capacity_that_is_too_small_gives_nan_not_a_wrong_number(x64):
    case = on_device(random_case(SHAPE, "identity", 7))
    assert np.isnan(tta.bound_terms(*case, rungs="tight", capacity=2).tight)


def test_tasks_pass_through_jit():
    rng = np.random.default_rng(0)
    task = tta.Task.from_arrays(rng.normal(size=(30, 5)), np.arange(30) % 4)
    transforms, _, head, _ = random_case(SHAPE, "identity", 8)
    target = tta.Task.from_arrays(rng.normal(size=(30, 5)), np.arange(30) % 3)
    evaluate = jax.jit(
        lambda t, s, h, q: tta.bound_terms(t, s, h, q, rungs="tight").tight
    )
    np.testing.assert_allclose(
        evaluate(transforms, task, head, target),
        tta.bound_terms(transforms, task, head, target, rungs="tight").tight,
        rtol=1e-5,
    )
