"""Principal components of the items that count."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tta_jax._internal.numbers import whole_number
from tta_jax._internal.typing import Array
from tta_jax.core.linalg import eigh, gram, significant
from tta_jax.metrics._inputs import LabelledFeatures


def on_principal_axes(
    data: LabelledFeatures, components: int | None
) -> tuple[LabelledFeatures, Array]:
    """Centred features in the coordinates of their first `components` principal axes,
    and which axes have variance, `(p,)` bool.

    The features themselves and all of their axes for None. Axes without variance give
    zeros; metrics leave them out, since how many there are depends on padding.

    Raises:
      ValueError: names `components`.
    """
    if components is None:
        return data, jnp.ones(data.features.shape[1], bool)
    number = whole_number(components)
    if number is None or number < 1:
        raise ValueError(
            f"components: found {components!r}; give a whole number of at least 1, or "
            "None for no reduction"
        )
    data = data.centred()
    projected, squares = principal(data.features)
    kept = min(number, projected.shape[1])
    return data._replace(features=projected[:, :kept]), squares[:kept] > 0


@jax.jit
def principal(features: Array) -> tuple[Array, Array]:
    """Coordinates `(n, r)` of centred `features (n, d)` on their principal axes, widest
    first, and sums of squares `(r,)`.

    r = min(n, d); both are 0 on axes without more than rounding.
    """
    n, d = features.shape
    wide = n <= d
    values, vectors = eigh(gram(features.T if wide else features))
    values, vectors = values[::-1], vectors[:, ::-1]
    alive = significant(values, max(n, d))
    squares = jnp.where(alive, values, 0.0)
    if not wide:
        return jnp.where(alive[None], features @ vectors, 0.0), squares
    return vectors * jnp.where(alive, jnp.sqrt(jnp.where(alive, values, 1.0)), 0.0)[
        None
    ], squares
