"""H-score with the covariance of Ledoit and Wolf, which stays meaningful with few items
(Ibrahim et al. 2022).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tta_jax._internal.typing import Array
from tta_jax.core.linalg import solve_positive
from tta_jax.metrics._inputs import LabelledFeatures
from tta_jax.metrics._registry import SPD_COST, metric


@metric("nothing", cost=SPD_COST, reference="Ibrahim et al. 2022, arXiv 2110.06893")
@jax.jit
def shrinkage_h_score(target: LabelledFeatures) -> Array:
    """Return `(1 - s) tr(S_s^-1 cov(E[f | y]))` with `S_s = (1 - s) cov(f) + s mu I`.

    Shrinkage s is that of Ledoit and Wolf (2004), mu the mean variance; both
    covariances are divided by n (released code divides the second by n - 1). May exceed
    K - 1.
    """
    data = target.centred()
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
    """Return Ledoit and Wolf's share of the identity for centred features, in 0..1."""
    dim = covariance.shape[0]
    level = jnp.trace(covariance) / dim
    squared = jnp.sum(covariance**2)
    distance = squared / dim - level**2
    noise = (jnp.sum(jnp.sum(data.features**2, axis=1) ** 2) / data.size - squared) / (
        dim * data.size
    )
    noise = jnp.minimum(noise, distance)
    return jnp.where(distance > 0, noise / jnp.where(distance > 0, distance, 1.0), 0.0)
