"""NCTI's three parts: how near features are to neural collapse (Wang et al. 2023).

All are about one discriminant, on the first 64 principal components with shrinkage
`exp(-sum of the first 32 variances)`. The published score adds them, each scaled to [0,
1] over a pool of models: `pooling.pool("ncti", ...)`. (Released code changes to another
solver of the discriminant where the shrinkage is below 1e-10; here it stays at 1e-10.)
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from tta_jax._internal.typing import Array
from tta_jax.core.linalg import eigh, nuclear_norm
from tta_jax.metrics._inputs import LabelledFeatures, class_capacity, class_rows
from tta_jax.metrics._lda import Within, at_least, discriminant, within
from tta_jax.metrics._principal_axes import on_principal_axes
from tta_jax.metrics._registry import GRAM_COST, metric

COMPONENTS, VARIANCES = 64, 32
REFERENCE = "Wang et al. 2023, ICCV"


def _fitted(data: LabelledFeatures, axes: Array) -> tuple[Within, Array]:
    """Return the spread within classes and the shrinkage."""
    variances = jnp.sum(data.features**2, axis=0) / (data.size - 1)
    spectrum = within(data, jnp.maximum(jnp.sum(axes, dtype=variances.dtype), 1))
    return spectrum, at_least(jnp.exp(-jnp.sum(variances[:VARIANCES])))


def _posterior(data: LabelledFeatures, axes: Array) -> Array:
    return discriminant(data, *_fitted(data, axes)).posterior(data.features)


@metric("nothing", cost=GRAM_COST, reference=REFERENCE, sees_scale=True)
@jax.jit
def ncti_seli(target: LabelledFeatures) -> Array:
    """Return the nuclear norm of all items in the first K - 1 directions of the
    discriminant, of unit variance within classes.
    """
    data, axes = on_principal_axes(target, COMPONENTS)
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


@metric("nothing", cost=GRAM_COST, reference=REFERENCE, sees_scale=True)
@jax.jit
def ncti_ncc(target: LabelledFeatures) -> Array:
    """Return the mean posterior of the own class, in [0, 1]."""
    data, axes = on_principal_axes(target, COMPONENTS)
    return data.own(_posterior(data, axes))


@metric("nothing", cost=f"{GRAM_COST}; n K^2", reference=REFERENCE, sees_scale=True)
def ncti_collapse(target: LabelledFeatures, *, class_size: int | None = None) -> Array:
    """Return `-ln sum_c ||P_c||_*`, minus the log nuclear norms of each class'
    posteriors: less spread within classes is more collapse.

    Args:
      class_size: items in the largest class, static; saves work under jit, where it is
        n when left out.
    """
    return _collapse(target, capacity=class_capacity(target, class_size))


@partial(jax.jit, static_argnames=("capacity",))
def _collapse(target: LabelledFeatures, *, capacity: int) -> Array:
    data, axes = on_principal_axes(target, COMPONENTS)
    norms = jax.lax.map(
        nuclear_norm, class_rows(data, _posterior(data, axes), capacity)
    )
    return -jnp.log(jnp.sum(norms))
