"""LEEP: how well target labels follow from what the source head says (Nguyen et al.
2020).
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
    reference="Nguyen et al. 2020, arXiv 2002.12462",
)
def leep(target: LabelledFeatures, theta: Array) -> Array:
    """Return `1/n sum_i log sum_z P(y_i | z) theta_z(x_i)`, nats, at most 0; P is the
    empirical joint of labels and predictions.

    A source class without mass takes no part.
    """
    return expected_log_prediction(target, theta)


@jax.jit
def expected_log_prediction(data: LabelledFeatures, theta: Array) -> Array:
    """Return LEEP, nats, of any soft assignment `theta (n, Z)` of the items."""
    joint = data.one_hot.T @ theta / data.size
    mass = jnp.sum(joint, axis=0)
    conditional = joint / jnp.where(mass > 0, mass, 1.0)[None]
    guess = theta @ conditional.T
    # Rows of padding have no mass, and no gradient either.
    return data.own(
        jnp.log(jnp.where(data.weights[:, None] > 0, jnp.maximum(guess, 0.0), 1.0))
    )
