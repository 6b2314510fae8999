"""SFDA: a regularised discriminant, fitted again to items that are pushed towards the
other classes (Shao et al. 2022).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tta_jax._internal.typing import Array, ArrayLike
from tta_jax.metrics._inputs import LabelledFeatures, labelled_features
from tta_jax.metrics._lda import adaptive_shrinkage, discriminant, within


def sfda(
    features: ArrayLike,
    labels: ArrayLike,
    source: None = None,
    *,
    mask: ArrayLike | None = None,
    num_classes: int | None = None,
) -> Array:
    """Mean posterior of the own class after self-challenge, in [0, 1] (without the
    logarithm, as published).

    A discriminant with shrinkage `exp(-5 lambda_max(S_W))` gives `p_i`, the softmax of
    its posterior at the own class; item i moves to
    `p_i x_i + (1 - p_i) (mean of the other classes' means)`; the discriminant is fitted
    again with the same shrinkage. It depends on the features' scale.

    Args:
      features: `(n, d)`; left as they are.
      labels: `(n,)` class indices.
      source: not looked at.
      mask, num_classes: as in every metric.

    Raises:
      ValueError: names the argument.
    """
    return _sfda(labelled_features(features, labels, mask, num_classes).centred())


@jax.jit
def _sfda(data: LabelledFeatures) -> Array:
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
