"""Distances between classes as distributions of features: Wasserstein of Gaussians, or
of the items themselves.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tta_jax._internal.typing import Array
from tta_jax.core.linalg import eigh, gram, nuclear_norm
from tta_jax.metrics._inputs import LabelledFeatures, class_rows
from tta_jax.metrics._sinkhorn_coupling import couple, couple_self

LABEL_DISTANCES = ("gaussian", "exact")


def check_label_distance(kind: str) -> None:
    if kind not in LABEL_DISTANCES:
        raise ValueError(
            f"label_distance: found {kind!r}; choose one of "
            f"{', '.join(LABEL_DISTANCES)}"
        )


def label_distances(
    first: LabelledFeatures,
    second: LabelledFeatures,
    kind: str,
    epsilon: Array,
    capacities: tuple[int, int],
) -> Array:
    """Squared 2-Wasserstein distances between the classes of two tasks, `(K_1, K_2)`; 0
    where a class has no items.

    Args:
      kind: "gaussian": between Gaussians of the classes' means and covariances, in
        closed form. "exact": between the items themselves, entropic with `epsilon` and
        debiased, as the otdd package's method of that name.
      epsilon: scalar, in the units of squared distances.
      capacities: static, at least the largest class of each.
    """
    blocks = (_blocks(first, capacities[0]), _blocks(second, capacities[1]))
    found = _gaussian(*blocks) if kind == "gaussian" else _exact(*blocks, epsilon)
    both = first.present[:, None] & second.present[None]
    return jnp.where(both, found, 0.0)


def _blocks(task: LabelledFeatures, capacity: int) -> tuple[Array, Array]:
    """Items `(K, capacity, d)` class by class, and how many there are, `(K,)`, at least
    1.
    """
    return class_rows(task, task.features, capacity), jnp.where(
        task.present, task.counts, 1.0
    )


def small_root(root: Array) -> Array:
    """`R` of at most d rows with the `R^T R` of a `(n, d)` root of a covariance."""
    if root.shape[0] <= root.shape[1]:
        return root
    values, vectors = eigh(gram(root))
    alive = values > 0
    return (
        jnp.where(alive, jnp.sqrt(jnp.where(alive, values, 1.0)), 0.0)[:, None]
        * vectors.T
    )


def gaussian_distance(
    mean: Array, root: Array, other_mean: Array, other_root: Array
) -> Array:
    """`||m - m'||^2 + tr S + tr S' - 2 ||R R'^T||_*` for roots R^T R = S: the Bures
    distance without a matrix root.
    """
    spread = (
        jnp.sum(root**2)
        + jnp.sum(other_root**2)
        - 2 * nuclear_norm(root @ other_root.T)
    )
    return jnp.sum((mean - other_mean) ** 2) + jnp.maximum(spread, 0.0)


def _gaussian(first: tuple[Array, Array], second: tuple[Array, Array]) -> Array:
    """Squared 2-Wasserstein distances of Gaussians."""

    def describe(block):
        rows, count = block
        mean = jnp.sum(rows, axis=0) / count
        inside = (jnp.arange(len(rows), dtype=rows.dtype) < count)[:, None]
        return mean, small_root(
            jnp.where(inside, rows - mean[None], 0.0) / jnp.sqrt(count)
        )

    (means, roots), (others, other_roots) = (
        jax.lax.map(describe, block) for block in (first, second)
    )

    def row(one):
        return jax.lax.map(
            lambda other: gaussian_distance(*one, *other), (others, other_roots)
        )

    return jax.lax.map(row, (means, roots))


def _exact(
    first: tuple[Array, Array], second: tuple[Array, Array], epsilon: Array
) -> Array:
    """The Sinkhorn divergence (Feydy et al. 2019) of every pair of classes."""

    def task(block) -> LabelledFeatures:
        rows, count = block
        weights = (jnp.arange(len(rows), dtype=rows.dtype) < count).astype(rows.dtype)
        return LabelledFeatures(
            rows,
            jnp.zeros(len(rows), jnp.int32),
            weights[:, None],
            weights,
            count,
            count[None],
        )

    def alone(block):
        found = couple_self(task(block), None, epsilon)
        return found.value, found.potential

    (own, _), (others, potentials) = (
        jax.lax.map(alone, blocks) for blocks in (first, second)
    )

    def row(x):
        def cell(y):
            return couple(task(x), task(y[0]), None, epsilon, start=y[1]).value

        return jax.lax.map(cell, (second, potentials))

    return jax.lax.map(row, first) - (own[:, None] + others[None]) / 2
