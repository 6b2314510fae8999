"""LEEP: how well target labels follow from what the source head says (Nguyen et al.
2020).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tta_jax._internal.typing import Array, ArrayLike
from tta_jax.metrics._inputs import LabelledFeatures, predicted


def leep(
    features: ArrayLike | None,
    labels: ArrayLike,
    source: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    num_classes: int | None = None,
) -> Array:
    """`1/n sum_i log sum_z P(y_i | z) theta_z(x_i)`, nats, at most 0; P is the
    empirical joint of labels and predictions.

    Args:
      features: not looked at; None will do.
      labels: `(n,)` class indices.
      source: `(n, K_S)` probabilities theta of the source head. A source class without
        mass takes no part.
      mask, num_classes: as in every metric.

    Raises:
      ValueError: names the argument.
    """
    return expected_log_prediction(*predicted(source, labels, mask, num_classes))


@jax.jit
def expected_log_prediction(data: LabelledFeatures, theta: Array) -> Array:
    """LEEP of any soft assignment `theta (n, Z)` of the items."""
    joint = data.one_hot.T @ theta / data.size
    mass = jnp.sum(joint, axis=0)
    conditional = joint / jnp.where(mass > 0, mass, 1.0)[None]
    guess = theta @ conditional.T
    # Rows of padding have no mass, and no gradient either.
    return data.own(
        jnp.log(jnp.where(data.weights[:, None] > 0, jnp.maximum(guess, 0.0), 1.0))
    )
