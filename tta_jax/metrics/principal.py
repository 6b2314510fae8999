"""Principal components of the items that count."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tta_jax.linalg import eigh, significant
from tta_jax.metrics.labelled import Array, Labelled
from tta_jax.task import whole_number


def on_principal_axes(data: Labelled, components: int | None) -> Labelled:
    """Centred features in the coordinates of their first `components` principal axes; the features themselves for None.

    At most `min(n, d)` of them. Axes without variance give zeros.

    Raises:
      ValueError: names `components`.
    """
    if components is None:
        return data
    number = whole_number(components)
    if number is None or number < 1:
        raise ValueError(
            f"components: found {components!r}; give a whole number of at least 1, or None for no reduction"
        )
    data = data.centred()
    projected, _ = principal(data.features)
    return data._replace(features=projected[:, : min(number, projected.shape[1])])


@jax.jit
def principal(features: Array) -> tuple[Array, Array]:
    """Coordinates `(n, r)` of centred `features (n, d)` on their principal axes, widest first, and sums of squares `(r,)`.

    r = min(n, d).
    """
    n, d = features.shape
    wide = n <= d
    values, vectors = eigh(features @ features.T if wide else features.T @ features)
    values, vectors = values[::-1], vectors[:, ::-1]
    alive = significant(values, max(n, d))
    squares = jnp.where(alive, values, 0.0)
    if not wide:
        return jnp.where(alive[None], features @ vectors, 0.0), squares
    return vectors * jnp.where(alive, jnp.sqrt(jnp.where(alive, values, 1.0)), 0.0)[None], squares
