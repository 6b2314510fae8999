"""NCE: minus the entropy of target labels given the source head's hard predictions
(Tran et al. 2019).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tta_jax._internal.typing import Array, ArrayLike
from tta_jax.metrics._inputs import LabelledFeatures, predicted


def nce(
    features: ArrayLike | None,
    labels: ArrayLike,
    source: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    num_classes: int | None = None,
) -> Array:
    """`-H(Y_T | argmax theta)`, nats, at most 0: target labels given source
    predictions, not the other way round.

    Args:
      features: not looked at; None will do.
      labels: `(n,)` class indices.
      source: `(n, K_S)` probabilities theta of the source head.
      mask, num_classes: as in every metric.

    Raises:
      ValueError: names the argument.
    """
    return _nce(*predicted(source, labels, mask, num_classes))


@jax.jit
def _nce(data: LabelledFeatures, theta: Array) -> Array:
    hard = jax.nn.one_hot(jnp.argmax(theta, axis=1), theta.shape[1], dtype=theta.dtype)
    return minus_conditional_entropy(hard.T @ data.one_hot / data.size)


def minus_conditional_entropy(joint: Array) -> Array:
    """`-H(columns | rows) = sum_zy P(z, y) ln(P(z, y) / P(z))` of a joint distribution
    `(Z, K)`, nats.
    """
    rows = jnp.sum(joint, axis=1, keepdims=True)
    ratio = jnp.where(joint > 0, joint, 1.0) / jnp.where(joint > 0, rows, 1.0)
    return jnp.sum(jnp.where(joint > 0, joint * jnp.log(ratio), 0.0)) + 0.0 * jnp.sum(
        joint
    )
