"""Factorisations that batch safely on CPUs, with the gradients that metrics and heads need."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

Array = jax.Array


def one_at_a_time(function: Callable) -> Callable:
    """`function`, which `vmap` makes a loop on CPUs and a batch elsewhere; it has no gradient of its own.

    A batch in LAPACK waits, in one of XLA's few threads, for work it has given to the same threads, and when all of them wait
    they do so for ever (jaxlib 0.10.1, `ParallelBatchMap`).
    """
    sequential = jax.custom_batching.sequential_vmap(function)
    return lambda *args: jax.lax.platform_dependent(*args, cpu=sequential, default=function)


def _by_cholesky(matrix: Array, right: Array) -> Array:
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(matrix), right)


_solve = one_at_a_time(_by_cholesky)
_cholesky = one_at_a_time(jnp.linalg.cholesky)
_eigh = one_at_a_time(lambda matrix: tuple(jnp.linalg.eigh(matrix)))
_svd = one_at_a_time(lambda matrix: tuple(jnp.linalg.svd(matrix, full_matrices=False)))
_svdvals = one_at_a_time(lambda matrix: jnp.linalg.svd(matrix, compute_uv=False))


def solve_positive(matrix: Float[Array, "p p"], right: Float[Array, "p k"]) -> Float[Array, "p k"]:
    """`matrix^-1 right` for a positive definite matrix."""
    # Loops made by `vmap` have no gradient of their own.
    return jax.lax.custom_linear_solve(lambda v: matrix @ v, right, lambda _, b: _solve(matrix, b), symmetric=True)


@jax.custom_jvp
def log_det(matrix: Float[Array, "p p"]) -> Float[Array, ""]:
    """`ln det` of a positive definite matrix; NaN for another."""
    return 2 * jnp.sum(jnp.log(jnp.diagonal(_cholesky(matrix))))


@log_det.defjvp
def _log_det_jvp(primals, tangents):
    (matrix,), (tangent,) = primals, tangents
    inverse = solve_positive(matrix, jnp.eye(matrix.shape[0], dtype=matrix.dtype))
    return log_det(matrix), jnp.sum(inverse * tangent)


@jax.custom_jvp
def eigh(matrix: Float[Array, "p p"]) -> tuple[Float[Array, " p"], Float[Array, "p p"]]:
    """Eigenvalues, rising, and eigenvectors (columns) of a symmetric matrix.

    Gradients leave out the rotation of eigenvectors of equal eigenvalues, which is not defined: they are right for functions that
    do not see it.
    """
    return _eigh(matrix)


@eigh.defjvp
def _eigh_jvp(primals, tangents):
    (matrix,), (tangent,) = primals, tangents
    values, vectors = eigh(matrix)
    turned = vectors.T @ ((tangent + tangent.T) / 2) @ vectors
    gap = values[None] - values[:, None]
    distinct = jnp.abs(gap) > jnp.finfo(matrix.dtype).eps * matrix.shape[0] * jnp.max(jnp.abs(values))
    rotation = jnp.where(distinct, turned / jnp.where(distinct, gap, 1.0), 0.0)
    return (values, vectors), (jnp.diagonal(turned), vectors @ rotation)


@jax.custom_jvp
def nuclear_norm(matrix: Float[Array, "n m"]) -> Float[Array, ""]:
    """Sum of the singular values. Its gradient is the matrix' orthogonal factor, without directions of no length."""
    return jnp.sum(_svdvals(matrix))


@nuclear_norm.defjvp
def _nuclear_norm_jvp(primals, tangents):
    (matrix,), (tangent,) = primals, tangents
    left, values, right = _svd(matrix)
    alive = values > jnp.finfo(matrix.dtype).eps * max(matrix.shape) * jnp.max(values)
    return jnp.sum(values), jnp.sum((jnp.where(alive, left, 0.0) @ right) * tangent)


def significant(values: Float[Array, " p"], size: int) -> Bool[Array, " p"]:
    """Which eigenvalues of a Gram matrix are more than rounding: above `size * eps` times the largest."""
    return values > jnp.finfo(values.dtype).eps * size * jnp.max(values)
