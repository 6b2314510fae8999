"""Every family against its formula in NumPy; starts; completion of logit-affine maps;
coupling layers layer by layer.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.reference import numpy_chain as oracle
from tests.typed import on_host
from tta_jax.core import feature_maps
from tta_jax.core.heads import SoftmaxHead

AFFINE = [name for name in sorted(feature_maps.FAMILIES) if name != "coupling_layers"]


def perturbed(family, dim, rng, size=0.4) -> Any:
    phi = feature_maps.FAMILIES[family](dim, jax.random.key(0))
    phi = jax.tree.map(
        lambda v: jnp.asarray(v, jnp.float64) + size * rng.normal(size=np.shape(v)), phi
    )
    # A reflection or none, never something between.
    return (
        feature_maps.Rotation(phi.generator, phi.shift, jnp.asarray(-1.0))
        if family == "rotation"
        else phi
    )


@pytest.mark.parametrize("family", AFFINE)
@pytest.mark.parametrize("dim", [1, 6])
def test_affine_families_are_their_formulas(family, dim, x64):
    rng = np.random.default_rng(dim)
    phi = perturbed(family, dim, rng)
    matrix, shift = oracle.affine_of(family, vars(phi))
    matrix = np.eye(dim) if matrix is None else matrix
    z, weight, bias = (
        rng.normal(size=(4, dim)),
        rng.normal(size=(3, dim)),
        rng.normal(size=3),
    )
    np.testing.assert_allclose(phi(z), z @ matrix.T + shift, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(
        phi.inverse(z), np.linalg.solve(matrix, (z - shift).T).T, rtol=1e-8, atol=1e-8
    )
    pulled = phi.pull(SoftmaxHead(weight, bias))
    expected = np.linalg.solve(matrix.T, weight.T).T
    np.testing.assert_allclose(pulled.weight, expected, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(
        pulled.bias, bias - expected @ np.broadcast_to(shift, dim), rtol=1e-8, atol=1e-8
    )
    assert phi.affine
    assert phi.why_not == ""


@pytest.mark.parametrize("family", sorted(feature_maps.FAMILIES))
def test_families_start_at_the_identity(family):
    z = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    phi = feature_maps.FAMILIES[family](6, jax.random.key(3))
    np.testing.assert_allclose(phi(z), z, atol=1e-6)
    assert phi(z).dtype == np.float32
    head = SoftmaxHead(z[:3], np.zeros(3, np.float32))
    np.testing.assert_allclose(phi.target_logits(head, z), head.logits(z), atol=1e-5)


@pytest.mark.parametrize("family", sorted(feature_maps.FAMILIES))
def test_jacobian_of_the_inverse_inverts_the_jacobian(family, x64):
    rng = np.random.default_rng(1)
    phi, z = perturbed(family, 4, rng), rng.normal(size=(1, 4))
    forward = jax.jacfwd(lambda v: phi(v[None])[0])(jnp.asarray(z[0]))
    backward = jax.jacrev(lambda v: phi.inverse(v[None])[0])(phi(z)[0])
    np.testing.assert_allclose(forward @ backward, np.eye(4), atol=1e-8)


@pytest.mark.parametrize("dim", [2, 5])
def test_coupling_layers_one_layer_after_the_other(dim, x64):
    rng = np.random.default_rng(dim)
    phi, z = perturbed("coupling_layers", dim, rng), rng.normal(size=(6, dim))
    np.testing.assert_allclose(
        oracle.coupling_layers_inverse(phi.layers, phi(z)), z, rtol=1e-9, atol=1e-9
    )
    moved = np.asarray(phi(z) + 0.0) - z
    assert np.all(np.abs(moved).max(0) > 1e-3)  # every feature is reached
    with pytest.raises(ValueError, match="at least 2 features"):
        feature_maps.FAMILIES["coupling_layers"](1, jax.random.key(0))


def test_the_reflection_is_never_learned(x64):
    phi = perturbed("rotation", 4, np.random.default_rng(0))
    gradient = jax.grad(lambda p: jnp.sum(jnp.cos(p(jnp.ones((2, 4))))))(phi)
    assert gradient.flip == 0
    assert np.abs(gradient.generator).max() > 0


def test_published_penalty(x64):
    rng = np.random.default_rng(0)
    phi = perturbed("published_pair", 3, rng)
    a, b, eye = np.asarray(phi.matrix), np.asarray(phi.inverse_matrix), np.eye(3)
    np.testing.assert_allclose(
        phi.penalty(), ((a @ b - eye) ** 2).sum() + ((b @ a - eye) ** 2).sum()
    )
    start = feature_maps.FAMILIES["published_pair"](3, jax.random.key(0))
    assert isinstance(start, feature_maps.PublishedPair)
    assert start.penalty() == 0


def test_new_values_compile_nothing(x64):
    rng, traces = np.random.default_rng(0), []

    @jax.jit
    def apply(phi, z):
        traces.append(type(phi).__name__)
        return phi.inverse(phi(z))

    for family in ("diagonal", "low_rank", "coupling_layers"):
        for _ in range(3):
            apply(perturbed(family, 4, rng), rng.normal(size=(2, 4)))
    assert len(traces) == 3


# -- completion ------------------------------------------------------------------------


def moments(rng, dim, n=40):
    x = rng.normal(size=(n, dim)) @ rng.normal(size=(dim, dim))
    return x.mean(0), x.var(0).sum()


# K, d, rank of W, whether a class is dropped, number of samples
CASES = [
    (4, 6, 4, False, 40),
    (4, 6, 4, True, 40),
    (5, 4, 2, False, 40),
    (3, 8, 1, False, 5),
    (2, 3, 2, False, 40),
]


@pytest.mark.parametrize(("k", "dim", "rank", "drop", "items"), CASES)
def test_completion_has_exactly_the_logits(k, dim, rank, drop, items):
    """`M = W G, m = c - W G b` always has an affine map; its logits are the source's,
    up to what softmax ignores.
    """
    for seed in range(4):
        rng = np.random.default_rng(seed)
        weight = rng.normal(size=(k, rank)) @ rng.normal(size=(rank, dim))
        g, b, bias = (
            rng.normal(size=(dim, dim)),
            rng.normal(size=dim),
            rng.normal(size=k),
        )
        active = np.ones(k, bool)
        m_weight, m_bias = weight @ g, bias - weight @ g @ b
        if drop:
            # A class that is not used may have any logits whatever.
            active[1] = False
            m_weight[1], m_bias[1] = rng.normal(size=dim), 99.0
        # What softmax cannot see: a linear form added to all logits alike.
        m_weight, m_bias = m_weight + rng.normal(size=dim), m_bias + rng.normal()
        head = SoftmaxHead(weight, bias)
        phi = feature_maps.LogitAffine(m_weight, m_bias)
        assert not phi.affine
        assert phi.why_not
        phi = phi.complete(
            head, active, moments(rng, dim, items), moments(rng, dim, items)
        )
        assert phi.affine, phi.why_not
        z = rng.normal(size=(7, dim))
        with jax.enable_x64(True):
            x = np.asarray(phi(z))
            gap = (np.asarray(phi.target_logits(head, x)) - np.asarray(head.logits(z)))[
                :, active
            ]
            np.testing.assert_allclose(phi.inverse(x), z, atol=1e-7)
            np.testing.assert_allclose(
                phi.target_logits(head, x), x @ m_weight.T + m_bias
            )
        np.testing.assert_allclose(gap - gap.mean(1, keepdims=True), 0, atol=1e-7)
        # The constant is that of the logits actually used.
        np.testing.assert_array_equal(phi.pull(head).weight, m_weight)


def logit_affine(weight, bias):
    return on_host(feature_maps.LogitAffine, weight, bias)


def test_completion_says_why_not():
    rng = np.random.default_rng(0)
    some = moments(rng, 5)
    head = SoftmaxHead(
        np.outer(rng.normal(size=4), rng.normal(size=5)), rng.normal(size=4)
    )
    every = np.ones(4, bool)
    cases = {
        "leave the range": logit_affine(
            np.outer(rng.normal(size=4), rng.normal(size=5)), head.bias
        ),
        "rank 3 in the target, 1": logit_affine(rng.normal(size=(4, 5)), head.bias),
        "leave the range of": logit_affine(head.weight, rng.normal(size=4)),
    }
    for words, phi in cases.items():
        failed = phi.complete(head, every, some, some)
        assert not failed.affine
        assert words in failed.why_not
        with pytest.raises(ValueError, match="feature_map"):
            failed.inverse(np.zeros((1, 5)))
    wide = SoftmaxHead(rng.normal(size=(7, 3)), rng.normal(size=7))
    free = logit_affine(rng.normal(size=(7, 3)), rng.normal(size=7))
    assert not free.complete(
        wide, np.ones(7, bool), moments(rng, 3), moments(rng, 3)
    ).affine


def test_logit_affine_start_is_the_head():
    rng = np.random.default_rng(0)
    head, x = (
        SoftmaxHead(rng.normal(size=(3, 4)), rng.normal(size=3)),
        rng.normal(size=(5, 4)),
    )
    np.testing.assert_array_equal(
        feature_maps.logit_affine(head).target_logits(head, x), head.logits(x)
    )
