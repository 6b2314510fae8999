"""NCTI's three parts: how near features are to neural collapse (Wang et al. 2023).

All are about one discriminant, on the first 64 principal components with shrinkage
`exp(-sum of the first 32 variances)`. The published score adds them, each scaled to [0,
1] over a pool of models: `pooled.ncti`. (Released code changes to another solver of the
discriminant where the shrinkage is below 1e-10; here it stays at 1e-10.)
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from tta_jax._internal.typing import Array, ArrayLike
from tta_jax.core.linalg import eigh, nuclear_norm
from tta_jax.metrics._inputs import (
    LabelledFeatures,
    class_capacity,
    class_rows,
    labelled_features,
)
from tta_jax.metrics._lda import Within, at_least, discriminant, within
from tta_jax.metrics._principal_axes import on_principal_axes

COMPONENTS, VARIANCES = 64, 32


def ncti_seli(
    features: ArrayLike,
    labels: ArrayLike,
    source: None = None,
    *,
    mask: ArrayLike | None = None,
    num_classes: int | None = None,
) -> Array:
    """Nuclear norm of all items in the first K - 1 directions of the discriminant, of
    unit variance within classes.

    Args:
      features: `(n, d)`.
      labels: `(n,)` class indices.
      source: not looked at.
      mask, num_classes: as in every metric.

    Raises:
      ValueError: names the argument.
    """
    return _seli(
        *on_principal_axes(
            labelled_features(features, labels, mask, num_classes), COMPONENTS
        )
    )


def ncti_ncc(
    features: ArrayLike,
    labels: ArrayLike,
    source: None = None,
    *,
    mask: ArrayLike | None = None,
    num_classes: int | None = None,
) -> Array:
    """Mean posterior of the own class, in [0, 1]. Arguments as in `ncti_seli`."""
    return _ncc(
        *on_principal_axes(
            labelled_features(features, labels, mask, num_classes), COMPONENTS
        )
    )


def ncti_collapse(
    features: ArrayLike,
    labels: ArrayLike,
    source: None = None,
    *,
    mask: ArrayLike | None = None,
    num_classes: int | None = None,
    class_size: int | None = None,
) -> Array:
    """`-ln sum_c ||P_c||_*`, minus the log nuclear norms of each class' posteriors:
    less spread within classes is more collapse.

    Arguments as in `ncti_seli`; `class_size` as in `transrate`.
    """
    data, axes = on_principal_axes(
        labelled_features(features, labels, mask, num_classes), COMPONENTS
    )
    return _collapse(data, axes, capacity=class_capacity(data, class_size))


def _fitted(data: LabelledFeatures, axes: Array) -> tuple[Within, Array]:
    """The spread within classes and the shrinkage."""
    variances = jnp.sum(data.features**2, axis=0) / (data.size - 1)
    spectrum = within(data, jnp.maximum(jnp.sum(axes, dtype=variances.dtype), 1))
    return spectrum, at_least(jnp.exp(-jnp.sum(variances[:VARIANCES])))


def _posterior(data: LabelledFeatures, axes: Array) -> Array:
    return discriminant(data, *_fitted(data, axes)).posterior(data.features)


@jax.jit
def _seli(data: LabelledFeatures, axes: Array) -> Array:
    spectrum, share = _fitted(data, axes)
    dim = data.features.shape[1]
    # Spread between classes, in coordinates where that within is one; axes without
    # variance come last.
    whiten = spectrum.power(jnp.eye(dim, dtype=data.features.dtype), share, -0.5)
    means = data.class_means * jnp.sqrt(data.shares)[:, None]
    # What shrinkage adds to the spread of all is more than what it adds to the spread
    # within.
    extra = jnp.sum(means**2) / jnp.maximum(jnp.sum(axes, dtype=means.dtype), 1)
    between = (1 - share) * means.T @ means + share * extra * jnp.diag(
        axes.astype(means.dtype)
    )
    _, vectors = eigh(whiten @ between @ whiten - jnp.diag((~axes).astype(means.dtype)))
    kept = jnp.arange(dim)[::-1] < jnp.sum(data.present) - 1
    return nuclear_norm(jnp.where(kept[None], data.features @ (whiten @ vectors), 0.0))


@jax.jit
def _ncc(data: LabelledFeatures, axes: Array) -> Array:
    return data.own(_posterior(data, axes))


@partial(jax.jit, static_argnames=("capacity",))
def _collapse(data: LabelledFeatures, axes: Array, *, capacity: int) -> Array:
    norms = jax.lax.map(
        nuclear_norm, class_rows(data, _posterior(data, axes), capacity)
    )
    return -jnp.log(jnp.sum(norms))
