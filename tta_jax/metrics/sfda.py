"""SFDA: a regularised discriminant, fitted again to items that are pushed towards the
other classes (Shao et al. 2022).
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
    cost=f"{SPD_COST}; {GRAM_COST}",
    reference="Shao et al. 2022, arXiv 2207.03036",
    sees_scale=True,
)
@jax.jit
def sfda(target: LabelledFeatures) -> Array:
    """Return the mean posterior of the own class after self-challenge, in [0, 1]
    (without the logarithm, as published).

    A discriminant with shrinkage `exp(-5 lambda_max(S_W))` gives `p_i`, the softmax of
    its posterior at the own class; item i moves to
    `p_i x_i + (1 - p_i) (mean of the other classes' means)`; the discriminant is fitted
    again with the same shrinkage. It depends on the features' scale, which is left as
    it is.
    """
    data = target.centred()
    spectrum = within(data)
    share = adaptive_shrinkage(spectrum)
    posterior = discriminant(data, spectrum, share).posterior(data.features)
    # Softened once more, over the classes that have items.
    softened = jax.nn.softmax(
        jnp.where(data.present[None], posterior, -jnp.inf), axis=1
    )
    sure = jnp.sum(softened * data.one_hot, axis=1)[:, None]
    means = data.class_means
    number = jnp.sum(data.present, dtype=means.dtype)
    others = (jnp.sum(means, axis=0)[None] - means) / (number - 1)
    moved = (
        sure * data.features + (1 - sure) * (data.one_hot @ others)
    ) * data.weights[:, None]
    challenged = data._replace(features=moved)
    return challenged.own(
        discriminant(challenged, within(challenged), share).posterior(moved)
    )
