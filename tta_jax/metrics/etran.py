"""ETran's two parts for classification: energy of the features, and a discriminant
(Gholami et al. 2023).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tta_jax._internal.typing import Array, ArrayLike
from tta_jax.metrics._inputs import LabelledFeatures, labelled_features
from tta_jax.metrics._lda import adaptive_shrinkage, discriminant, within


def etran_energy(
    features: ArrayLike,
    labels: ArrayLike,
    source: None = None,
    *,
    mask: ArrayLike | None = None,
    num_classes: int | None = None,
    share: float = 0.005,
) -> Array:
    """Mean of `ln sum_j exp(f_j)` over the share of items where it is lowest, at least
    one; labels only tell padding apart.

    It depends on the features' scale and number. The published score adds 0.15 of this
    to 0.85 of `etran_lda`, both scaled to [0, 1] over a pool of models: `pooled.etran`.

    Args:
      features: `(n, d)`.
      labels: `(n,)` class indices.
      source: not looked at.
      mask, num_classes: as in every metric.
      share: of the items, in (0, 1].

    Raises:
      ValueError: names the argument.
    """
    if not 0 < share <= 1:
        raise ValueError(
            f"share: found {share!r}; give a share of the items, above 0 and at most 1"
        )
    return _energy(labelled_features(features, labels, mask, num_classes), share)


@jax.jit
def _energy(data: LabelledFeatures, share: float) -> Array:
    energy = jnp.sort(
        jnp.where(data.weights > 0, jax.nn.logsumexp(data.features, axis=1), jnp.inf)
    )
    number = jnp.maximum(jnp.floor(share * data.size + 1e-6), 1)
    lowest = jnp.arange(len(energy), dtype=energy.dtype) < number
    return jnp.sum(jnp.where(lowest, energy, 0.0)) / number


def etran_lda(
    features: ArrayLike,
    labels: ArrayLike,
    source: None = None,
    *,
    mask: ArrayLike | None = None,
    num_classes: int | None = None,
) -> Array:
    """Mean posterior of the own class under a discriminant with shrinkage
    `exp(-5 lambda_max(S_W))`, in [0, 1].

    Arguments as in `etran_energy`.
    """
    return _lda(labelled_features(features, labels, mask, num_classes).centred())


@jax.jit
def _lda(data: LabelledFeatures) -> Array:
    spectrum = within(data)
    return data.own(
        discriminant(data, spectrum, adaptive_shrinkage(spectrum)).posterior(
            data.features
        )
    )
