"""NCTI's three parts: how near features are to neural collapse (Wang et al. 2023).

All are about one discriminant, on the first 64 principal components with shrinkage `exp(-sum of the first 32 variances)`. The
published score adds them, each scaled to [0, 1] over a pool of models: `pooled.ncti`. (Released code changes to another solver of
the discriminant where the shrinkage is below 1e-10; here it stays at 1e-10.)
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from tta_jax.linalg import eigh, nuclear_norm
from tta_jax.metrics.discriminant import LEAST_SHRINKAGE, discriminant, shrunk, within
from tta_jax.metrics.labelled import Array, ArrayLike, Labelled, class_capacity, class_rows, labelled
from tta_jax.metrics.principal import on_principal_axes

COMPONENTS, VARIANCES = 64, 32


def ncti_seli(
    features: ArrayLike,
    labels: ArrayLike,
    source: None = None,
    *,
    mask: ArrayLike | None = None,
    num_classes: int | None = None,
) -> Array:
    """Nuclear norm of all items in the first K - 1 directions of the discriminant, of unit variance within classes.

    Args:
      features: `(n, d)`.
      labels: `(n,)` class indices.
      source: not looked at.
      mask, num_classes: as in every metric.

    Raises:
      ValueError: names the argument.
    """
    return _seli(on_principal_axes(labelled(features, labels, mask, num_classes), COMPONENTS))


def ncti_ncc(
    features: ArrayLike,
    labels: ArrayLike,
    source: None = None,
    *,
    mask: ArrayLike | None = None,
    num_classes: int | None = None,
) -> Array:
    """Mean posterior of the own class, in [0, 1]. Arguments as in `ncti_seli`."""
    return _ncc(on_principal_axes(labelled(features, labels, mask, num_classes), COMPONENTS))


def ncti_collapse(
    features: ArrayLike,
    labels: ArrayLike,
    source: None = None,
    *,
    mask: ArrayLike | None = None,
    num_classes: int | None = None,
    class_size: int | None = None,
) -> Array:
    """`-ln sum_c ||P_c||_*`, minus the log nuclear norms of each class' posteriors: less spread within classes is more collapse.

    Arguments as in `ncti_seli`; `class_size` as in `transrate`.
    """
    data = on_principal_axes(labelled(features, labels, mask, num_classes), COMPONENTS)
    return _collapse(data, capacity=class_capacity(data, class_size))


def _share(data: Labelled) -> Array:
    variances = jnp.sum(data.features**2, axis=0) / (data.size - 1)
    return jnp.maximum(jnp.exp(-jnp.sum(variances[:VARIANCES])), LEAST_SHRINKAGE)


def _posterior(data: Labelled) -> Array:
    return discriminant(data, _share(data)).posterior(data.features)


@jax.jit
def _seli(data: Labelled) -> Array:
    share, inner = _share(data), within(data)
    spread = shrunk(inner, share)
    total = shrunk(data.features.T @ data.features / data.size, share)
    # The generalised problem in the coordinates where the spread within classes is one.
    values, vectors = eigh(spread)
    whiten = vectors / jnp.sqrt(values)[None]
    values, vectors = eigh(whiten.T @ (total - spread) @ whiten)
    number = jnp.sum(data.present) - 1
    kept = jnp.arange(len(values))[::-1] < number
    return nuclear_norm(jnp.where(kept[None], data.features @ (whiten @ vectors), 0.0))


@jax.jit
def _ncc(data: Labelled) -> Array:
    return data.own(_posterior(data))


@partial(jax.jit, static_argnames=("capacity",))
def _collapse(data: Labelled, *, capacity: int) -> Array:
    norms = jax.lax.map(nuclear_norm, class_rows(data, _posterior(data), capacity))
    return -jnp.log(jnp.sum(norms))
