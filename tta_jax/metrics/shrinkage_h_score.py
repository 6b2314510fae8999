"""H-score with the covariance of Ledoit and Wolf, which stays meaningful with few items
(Ibrahim et al. 2022).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tta_jax._internal.typing import Array, ArrayLike
from tta_jax.core.linalg import solve_positive
from tta_jax.metrics._inputs import LabelledFeatures, labelled_features


def shrinkage_h_score(
    features: ArrayLike,
    labels: ArrayLike,
    source: None = None,
    *,
    mask: ArrayLike | None = None,
    num_classes: int | None = None,
) -> Array:
    """`(1 - s) tr(S_s^-1 cov(E[f | y]))` with `S_s = (1 - s) cov(f) + s mu I`.

    Shrinkage s is that of Ledoit and Wolf (2004), mu the mean variance; both
    covariances are divided by n (released code divides the second by n - 1). May exceed
    K - 1.

    Args:
      features: `(n, d)`.
      labels: `(n,)` class indices.
      source: not looked at.
      mask, num_classes: as in every metric.

    Raises:
      ValueError: names the argument.
    """
    return _shrinkage_h_score(
        labelled_features(features, labels, mask, num_classes).centred()
    )


@jax.jit
def _shrinkage_h_score(data: LabelledFeatures) -> Array:
    dim = data.features.shape[1]
    covariance = data.features.T @ data.features / data.size
    share = shrinkage(data, covariance)
    level = jnp.trace(covariance) / dim
    shrunk = (1 - share) * covariance + share * level * jnp.eye(
        dim, dtype=covariance.dtype
    )
    means = data.class_means * jnp.sqrt(data.shares)[:, None]
    return (1 - share) * jnp.sum(means.T * solve_positive(shrunk, means.T))


def shrinkage(data: LabelledFeatures, covariance: Array) -> Array:
    """Ledoit and Wolf's share of the identity, in [0, 1], for centred features."""
    dim = covariance.shape[0]
    level = jnp.trace(covariance) / dim
    squared = jnp.sum(covariance**2)
    distance = squared / dim - level**2
    noise = (jnp.sum(jnp.sum(data.features**2, axis=1) ** 2) / data.size - squared) / (
        dim * data.size
    )
    noise = jnp.minimum(noise, distance)
    return jnp.where(distance > 0, noise / jnp.where(distance > 0, distance, 1.0), 0.0)
