"""NCE: minus the entropy of target labels given the source head's hard predictions
(Tran et al. 2019).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tta_jax._internal.typing import Array
from tta_jax.metrics._inputs import LabelledFeatures
from tta_jax.metrics._registry import metric


@metric(
    "probabilities",
    cost="n K_S K",
    reference="Tran et al. 2019, arXiv 1908.08142",
    differentiable=False,
)
@jax.jit
def nce(target: LabelledFeatures, theta: Array) -> Array:
    """Return `-H(Y_T | argmax theta)`, nats, at most 0: target labels given source
    predictions, not the other way round.
    """
    hard = jax.nn.one_hot(jnp.argmax(theta, axis=1), theta.shape[1], dtype=theta.dtype)
    return minus_conditional_entropy(hard.T @ target.one_hot / target.size)


def minus_conditional_entropy(joint: Array) -> Array:
    """Return `-H(columns | rows) = sum_zy P(z, y) ln(P(z, y) / P(z))` of a joint
    distribution `(Z, K)`, nats.
    """
    rows = jnp.sum(joint, axis=1, keepdims=True)
    ratio = jnp.where(joint > 0, joint, 1.0) / jnp.where(joint > 0, rows, 1.0)
    return jnp.sum(jnp.where(joint > 0, joint * jnp.log(ratio), 0.0)) + 0.0 * jnp.sum(
        joint
    )
