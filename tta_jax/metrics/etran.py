"""ETran's two parts for classification: energy of the features, and a discriminant
(Gholami et al. 2023).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tta_jax._internal.typing import Array
from tta_jax.metrics._inputs import LabelledFeatures
from tta_jax.metrics._lda import adaptive_shrinkage, discriminant, within
from tta_jax.metrics._registry import GRAM_COST, SPD_COST, metric


@metric(
    "nothing",
    cost="n d",
    reference="Gholami et al. 2023, arXiv 2308.02027",
    sees_scale=True,
)
def etran_energy(target: LabelledFeatures, *, share: float = 0.005) -> Array:
    """Return the mean of `ln sum_j exp(f_j)` over the share of items where it is
    lowest, at least one; labels only tell padding apart.

    It depends on the features' scale and number. The published score adds 0.15 of this
    to 0.85 of `etran_lda`, both scaled to [0, 1] over a pool of models:
    `pooling.pool("etran", ...)`.

    Args:
      share: of the items, in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(
            f"share: found {share!r}; give a share of the items, above 0 and at most 1"
        )
    return _energy(target, share)


@jax.jit
def _energy(data: LabelledFeatures, share: float) -> Array:
    energy = jnp.sort(
        jnp.where(data.weights > 0, jax.nn.logsumexp(data.features, axis=1), jnp.inf)
    )
    number = jnp.maximum(jnp.floor(share * data.size + 1e-6), 1)
    lowest = jnp.arange(len(energy), dtype=energy.dtype) < number
    return jnp.sum(jnp.where(lowest, energy, 0.0)) / number


@metric(
    "nothing",
    cost=f"{SPD_COST}; {GRAM_COST}",
    reference="Gholami et al. 2023, arXiv 2308.02027",
    sees_scale=True,
)
@jax.jit
def etran_lda(target: LabelledFeatures) -> Array:
    """Return the mean posterior of the own class under a discriminant with shrinkage
    `exp(-5 lambda_max(S_W))`, in [0, 1].
    """
    data = target.centred()
    spectrum = within(data)
    return data.own(
        discriminant(data, spectrum, adaptive_shrinkage(spectrum)).posterior(
            data.features
        )
    )
