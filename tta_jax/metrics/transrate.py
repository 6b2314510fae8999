"""TransRate: coding rate of all features less that of the classes (Huang et al.
2022).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from tta_jax._internal.typing import Array
from tta_jax.core.linalg import gram, in_turn, log_det
from tta_jax.metrics._inputs import LabelledFeatures, class_capacity, class_rows
from tta_jax.metrics._registry import GRAM_COST, metric

_CELLS = 1 << 22  # of the classes' Gram matrices held at once


@metric("nothing", cost=GRAM_COST, reference="Huang et al. 2022, arXiv 2106.09362")
def transrate(
    target: LabelledFeatures,
    *,
    class_size: int | None = None,
    epsilon: float = 1e-4,
    normalize: bool = True,
) -> Array:
    """Return `R(Z) - mean_c R(Z_c)` with `R(Z) = 1/2 ln det(I + Z^T Z / (n epsilon))`,
    nats; Z centred on its mean.

    It depends on the features' scale. Here they are divided by the root of their mean
    square distance from the mean, so that encoders can be compared; `normalize=False`
    takes them as they are, as released code does.

    Args:
      class_size: items in the largest class, static; saves work under jit, where it is
        n when left out.
      epsilon: squared distortion that is allowed, on features of unit variance in all.
      normalize: whether features are divided by their scale, static.
    """
    capacity = class_capacity(target, class_size)
    return _transrate(target, epsilon, capacity=capacity, normalize=normalize)


@partial(jax.jit, static_argnames=("capacity", "normalize"))
def _transrate(
    data: LabelledFeatures, epsilon: float, *, capacity: int, normalize: bool
) -> Array:
    return in_turn(
        partial(_rate_beyond_classes, capacity=capacity, normalize=normalize)
    )(data, epsilon)


def _rate_beyond_classes(
    data: LabelledFeatures, epsilon: Array, *, capacity: int, normalize: bool
) -> Array:
    data = data.centred()
    z = data.features
    if normalize:  # a scale of the features is one of the distortion
        spread = jnp.sum(z**2) / data.size
        epsilon = epsilon * jnp.where(spread > 0, spread, 1.0)
    together = max(1, _CELLS // min(capacity, z.shape[1]) ** 2)
    rates = jax.lax.map(
        lambda block: coding_rate(block[0], block[1] * epsilon),
        (class_rows(data, z, capacity), data.counts),
        batch_size=min(together, len(data.counts)),
    )
    return coding_rate(z, data.size * epsilon) - data.mean_over_classes(rates)


def coding_rate(rows: Array, unit: Array) -> Array:
    """Return `1/2 ln det(I + Z^T Z / unit)` for `rows (n, d)`, nats, by the smaller of
    the two Gram matrices; 0 without rows.
    """
    smaller = gram(rows.T if rows.shape[0] <= rows.shape[1] else rows)
    unit = jnp.where(unit > 0, unit, 1.0)
    return 0.5 * log_det(jnp.eye(len(smaller), dtype=smaller.dtype) + smaller / unit)
