"""Factorisations that batch safely on CPUs, with the gradients that metrics and heads
need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from tta_jax._internal.typing import Array


def one_at_a_time(function: Callable) -> Callable:
    """`function`, which `vmap` makes a loop on CPUs and a batch elsewhere; it has no
    gradient of its own.

    A batch in LAPACK waits, in one of XLA's few threads, for work it has given to the
    same threads, and when all of them wait they do so for ever (jaxlib 0.10.1,
    `ParallelBatchMap`).
    """
    looped = jax.custom_batching.custom_vmap(function)

    @looped.def_vmap
    def _(axis_size: int, in_batched: list, *args):
        leaves, tree = jax.tree.flatten(args)
        moved = jax.tree.leaves(in_batched)
        if not any(moved):  # as within a second derivative
            out = function(*args)
        else:

            def once(parts: list):
                part = iter(parts)
                return looped(
                    *tree.unflatten(
                        [
                            next(part) if move else leaf
                            for leaf, move in zip(leaves, moved, strict=True)
                        ]
                    )
                )

            out = jax.lax.map(
                once, [leaf for leaf, move in zip(leaves, moved, strict=True) if move]
            )
        return out, jax.tree.map(lambda _: any(moved), out)

    return lambda *args: jax.lax.platform_dependent(*args, cpu=looped, default=function)


def in_turn(function: Callable) -> Callable:
    """The same for a function with a gradient, made of parts that batch safely: on CPUs
    what it holds stays in a core's cache.
    """
    looped = jax.custom_jvp(one_at_a_time(function))
    looped.defjvp(lambda primals, tangents: jax.jvp(function, primals, tangents))
    return looped


_BLOCK = 512  # columns


def matmul(a: Any, b: Any) -> Any:
    """`a @ b` in the full precision of its operands, NumPy's of NumPy's arrays.

    By default accelerators multiply float32 with fewer bits (8 on TPUs), which is not
    enough for what decides a certificate, a residual or a factorisation.
    """
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a @ b
    return jnp.matmul(a, b, precision="highest")


def gram(rows: Float[Array, "n p"]) -> Float[Array, "p p"]:
    """`X^T X`, exactly symmetric. Of a wide matrix only blocks on and above the
    diagonal are multiplied: nearly half the work.
    """
    p = rows.shape[1]

    if p < 2 * _BLOCK:
        return matmul(rows.T, rows)
    half = (
        (p // 2 + 127) // 128 * 128
    )  # a multiple of what accelerators multiply at once
    left, right = rows[:, :half], rows[:, half:]
    corner = matmul(left.T, right)
    return jnp.block([[gram(left), corner], [corner.T, gram(right)]])


def _by_cholesky(matrix: Array, right: Array) -> Array:
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(matrix), right)


_solve = one_at_a_time(_by_cholesky)
_cholesky = one_at_a_time(jnp.linalg.cholesky)
_eigh = one_at_a_time(lambda matrix: tuple(jnp.linalg.eigh(matrix)))
_svd = one_at_a_time(lambda matrix: tuple(jnp.linalg.svd(matrix, full_matrices=False)))
_svdvals = one_at_a_time(lambda matrix: jnp.linalg.svd(matrix, compute_uv=False))


def solve_positive(
    matrix: Float[Array, "p p"], right: Float[Array, "p k"]
) -> Float[Array, "p k"]:
    """`matrix^-1 right` for a positive definite matrix."""
    # Loops made by `vmap` have no gradient of their own.
    return jax.lax.custom_linear_solve(
        lambda v: matmul(matrix, v),
        right,
        lambda _, b: _solve(matrix, b),
        symmetric=True,
    )


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

    Gradients leave out the rotation of eigenvectors of equal eigenvalues, which is not
    defined: they are right for functions that do not see it.
    """
    return _eigh(matrix)


@eigh.defjvp
def _eigh_jvp(primals, tangents):
    (matrix,), (tangent,) = primals, tangents
    values, vectors = eigh(matrix)
    turned = matmul(matmul(vectors.T, (tangent + tangent.T) / 2), vectors)
    gap = values[None] - values[:, None]
    distinct = jnp.abs(gap) > jnp.finfo(matrix.dtype).eps * matrix.shape[0] * jnp.max(
        jnp.abs(values)
    )
    rotation = jnp.where(distinct, turned / jnp.where(distinct, gap, 1.0), 0.0)
    return (values, vectors), (jnp.diagonal(turned), matmul(vectors, rotation))


@jax.custom_jvp
def nuclear_norm(matrix: Float[Array, "n m"]) -> Float[Array, ""]:
    """Sum of the singular values. Its gradient is the matrix' orthogonal factor,
    without directions of no length.
    """
    return jnp.sum(_svdvals(matrix))


@nuclear_norm.defjvp
def _nuclear_norm_jvp(primals, tangents):
    (matrix,), (tangent,) = primals, tangents
    left, values, right = _svd(matrix)
    alive = values > jnp.finfo(matrix.dtype).eps * max(matrix.shape) * jnp.max(values)
    return jnp.sum(values), jnp.sum(
        matmul(jnp.where(alive, left, 0.0), right) * tangent
    )


def least_squares(
    features: Float[Array, "n p"], targets: Float[Array, "n k"]
) -> tuple[Float[Array, "p k"], Float[Array, ""]]:
    """The least-norm coefficients `X^+ T`, and `||X X^+ T||^2`, by the smaller Gram
    matrix; it has no gradient of its own.

    Directions of no more than rounding are left out. Where there are none, a Cholesky
    factorisation takes a tenth of the time that the spectrum takes.
    """
    return _least_squares(features, targets)


def _by_spectrum(features: Array, targets: Array, matrix: Array) -> tuple[Array, Array]:
    n, d = features.shape
    values, vectors = eigh(matrix)
    alive = significant(values, max(n, d))[:, None]
    wide = n <= d
    cross = matmul(vectors.T, targets if wide else matmul(features.T, targets))
    scaled = jnp.where(alive, cross / jnp.where(alive, values[:, None], 1.0), 0.0)
    found = matmul(vectors, scaled)
    if wide:
        return matmul(features.T, found), jnp.sum(jnp.where(alive, cross**2, 0.0))
    return found, jnp.sum(scaled * cross)


@one_at_a_time
def _least_squares(features: Array, targets: Array) -> tuple[Array, Array]:
    n, d = features.shape
    if n <= d:  # often of deficient rank: features are centred
        return _by_spectrum(features, targets, gram(features.T))
    matrix = gram(features)
    lower = jnp.linalg.cholesky(matrix)

    def by_cholesky(features, targets, matrix):
        half = jax.scipy.linalg.solve_triangular(
            lower, matmul(features.T, targets), lower=True
        )
        return jax.scipy.linalg.solve_triangular(
            lower, half, lower=True, trans=1
        ), jnp.sum(half**2)

    return jax.lax.cond(
        _full_rank(matrix, lower, n),
        by_cholesky,
        _by_spectrum,
        features,
        targets,
        matrix,
    )


def _full_rank(matrix: Array, lower: Array, size: int) -> Array:
    """Whether the least eigenvalue is well above what `significant` takes for rounding,
    by power iterations in both directions.
    """

    def unit(v):
        return v / jnp.sqrt(jnp.sum(v**2))

    def step(_, pair):
        top, bottom = (unit(v) for v in pair)
        return matmul(matrix, top), jax.scipy.linalg.cho_solve(
            (lower, True), bottom[:, None]
        )[:, 0]

    start = jnp.cos(jnp.arange(len(matrix), dtype=matrix.dtype))
    top, bottom = jax.lax.fori_loop(0, 3, step, (start, start))
    largest, least = jnp.sqrt(jnp.sum(top**2)), 1 / jnp.sqrt(jnp.sum(bottom**2))
    return (
        least > 16 * jnp.finfo(matrix.dtype).eps * size * largest
    )  # False for NaN, where there is no factorisation


def significant(values: Float[Array, " p"], size: int) -> Bool[Array, " p"]:
    """Which eigenvalues of a Gram matrix are more than rounding: above `size * eps`
    times the largest.
    """
    return values > jnp.finfo(values.dtype).eps * size * jnp.max(values)
