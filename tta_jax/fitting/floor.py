"""Choose the floor under a classifier's probabilities (docs/theory.md, section 5.3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float

from tta_jax._internal.typing import Array
from tta_jax.core.losses import floored_loss

# The least of them costs a thousandth of a nat at most.
FLOORS = (0.001, 0.003, 0.01, 0.03, 0.1)


def choose_floor(
    losses: Float[Array, " n"],
    log_p: Float[Array, " n"],
    weights: Float[Array, " n"],
    wanted: Float[Array, ""],
) -> Float[Array, ""]:
    """Choose the floor of least mean loss on items that did not learn.

    Args:
      losses: of the classifier without a floor, nats.
      log_p: `log p_T` of the items' classes.
      weights: of the items; those of weight 0 do not count, whatever they hold.
      wanted: the floor to take; NaN to choose one.
    """
    counts = weights > 0
    losses, log_p = jnp.where(counts, losses, 0.0), jnp.where(counts, log_p, 0.0)
    floors = jnp.asarray(FLOORS, losses.dtype)
    means = jax.vmap(lambda f: floored_loss(losses, log_p, f) @ weights)(floors)
    best = floors[jnp.argmin(jnp.where(jnp.isnan(means), jnp.inf, means))]
    return jnp.where(jnp.isnan(wanted), best, wanted)
