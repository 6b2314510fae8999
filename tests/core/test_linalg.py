"""Factorisations against NumPy, alone and under vmap; the two ways to least squares
agree.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tta_jax.core import linalg


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (50, 1100), (60, 2500)])
@pytest.mark.usefixtures("x64")
def test_a_gram_matrix_in_blocks_is_the_whole_one(shape):
    x = np.random.default_rng(0).normal(size=shape)
    found = np.asarray(linalg.gram(jnp.asarray(x)))
    np.testing.assert_allclose(found, x.T @ x, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(found, found.T)


def matrices():
    rng = np.random.default_rng(1)
    tall = rng.normal(size=(60, 12))
    copies, wide, thin = tall.copy(), rng.normal(size=(12, 60)), tall.copy()
    copies[:, 5] = copies[:, 3] - copies[:, 1]
    thin[:, 4] *= 1e-5  # of full rank, and far from it
    dead = tall.copy()
    dead[:, 7] = 0
    return {"tall": tall, "copies": copies, "wide": wide, "thin": thin, "dead": dead}


@pytest.mark.parametrize("name", matrices())
@pytest.mark.usefixtures("x64")
def test_least_squares_are_those_of_the_pseudoinverse(name):
    x = matrices()[name]
    targets = np.random.default_rng(2).normal(size=(len(x), 3))
    coefficients, explained = linalg.least_squares(jnp.asarray(x), jnp.asarray(targets))
    expected = np.linalg.pinv(x, rcond=1e-12) @ targets
    np.testing.assert_allclose(coefficients, expected, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(explained, ((x @ expected) ** 2).sum(), rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_either_way_to_least_squares_gives_the_same_where_both_can():
    x = jnp.asarray(matrices()["tall"])
    targets = jnp.asarray(np.random.default_rng(3).normal(size=(60, 3)))
    matrix = linalg.gram(x)
    by_spectrum = linalg._by_spectrum(x, targets, matrix)
    for a, b in zip(linalg.least_squares(x, targets), by_spectrum, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    full = {
        name: bool(
            linalg._full_rank(
                linalg.gram(jnp.asarray(v)),
                jnp.linalg.cholesky(linalg.gram(jnp.asarray(v))),
                60,
            )
        )
        for name, v in matrices().items()
        if name != "wide"
    }
    assert full == {"tall": True, "copies": False, "thin": True, "dead": False}


@pytest.mark.usefixtures("x64")
def test_least_squares_of_a_batch_are_those_of_each():
    stack = jnp.asarray(
        np.stack([matrices()[name] for name in ("tall", "copies", "thin", "dead")])
    )
    targets = jnp.asarray(np.random.default_rng(4).normal(size=(4, 60, 2)))
    batch = jax.jit(jax.vmap(linalg.least_squares))(stack, targets)
    for k in range(4):
        for found, alone in zip(
            batch, linalg.least_squares(stack[k], targets[k]), strict=True
        ):
            np.testing.assert_allclose(found[k], alone, rtol=1e-6, atol=1e-9)
