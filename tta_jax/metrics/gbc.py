"""GBC: overlap of Gaussians fitted to the classes (Pandy et al. 2022)."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from tta_jax._internal.typing import Array
from tta_jax.metrics._inputs import LabelledFeatures
from tta_jax.metrics._principal_axes import on_principal_axes
from tta_jax.metrics._registry import GRAM_COST, metric

GAUSSIANS = ("spherical", "diagonal")


@metric(
    "nothing",
    cost=f"{GRAM_COST}; K^2 64",
    reference="Pandy et al. 2022, arXiv 2111.12780",
    sees_scale=True,
    underflows=True,
    undefined="it underflows to 0; log_gbc gives the same order",
)
def gbc(
    target: LabelledFeatures,
    *,
    gaussian: str = "spherical",
    components: int | None = 64,
    floor: float = 1e-4,
) -> Array:
    """Return `-sum_{c != c'} exp(-B(c, c'))` over ordered pairs of classes, B the
    Bhattacharyya distance of their Gaussians; at most 0.

    On the first 64 principal components, as published. Far apart classes underflow to
    0, which then says nothing: `log_gbc` orders tasks as this does and never
    underflows.

    Args:
      gaussian: "spherical" or "diagonal". (Released code counts the log-variance of a
        spherical Gaussian once, not d times.)
      components: principal components kept; None for the features themselves.
      floor: least variance of a feature in a class.
    """
    return -jnp.exp(-_separation(target, gaussian, components, floor))


@metric(
    "nothing",
    cost=f"{GRAM_COST}; K^2 64",
    reference="Pandy et al. 2022, arXiv 2111.12780",
    sees_scale=True,
)
def log_gbc(
    target: LabelledFeatures,
    *,
    gaussian: str = "spherical",
    components: int | None = 64,
    floor: float = 1e-4,
) -> Array:
    """Return `-ln(-gbc)`: the same order of tasks, without underflow.

    Args:
      gaussian: "spherical" or "diagonal", as in `gbc`.
      components: principal components kept; None for the features themselves.
      floor: least variance of a feature in a class.
    """
    return _separation(target, gaussian, components, floor)


def _separation(
    target: LabelledFeatures, gaussian: str, components: int | None, floor: float
) -> Array:
    if gaussian not in GAUSSIANS:
        raise ValueError(
            f"gaussian: found {gaussian!r}; choose one of {', '.join(GAUSSIANS)}"
        )
    return _log_gbc(*on_principal_axes(target, components), floor, gaussian=gaussian)


@partial(jax.jit, static_argnames=("gaussian",))
def _log_gbc(
    data: LabelledFeatures, axes: Array, floor: float, *, gaussian: str
) -> Array:
    counts = jnp.where(data.present, data.counts, 1.0)[:, None]
    means = data.class_means
    variance = jnp.maximum(data.one_hot.T @ data.residuals() ** 2 / counts, floor)
    if gaussian == "spherical":
        mean = jnp.sum(jnp.where(axes[None], variance, 0.0), axis=1) / jnp.sum(
            axes, dtype=variance.dtype
        )
        variance = jnp.broadcast_to(mean[:, None], variance.shape)

    def row(one):
        mean, spread = one
        both = (variance + spread[None]) / 2
        apart = (means - mean[None]) ** 2 / both / 8
        shape = jnp.log(both) - 0.5 * jnp.log(variance) - 0.5 * jnp.log(spread)[None]
        return jnp.sum(jnp.where(axes[None], apart + 0.5 * shape, 0.0), axis=1)

    distance = jax.lax.map(row, (means, variance))
    pairs = (
        data.present[:, None] & data.present[None] & ~jnp.eye(len(means), dtype=bool)
    )
    exponents = jnp.where(pairs, -distance, -jnp.inf)
    # Of one class alone there are no pairs: no overlap is not the best of overlaps.
    return data.valid(jnp.where(jnp.any(pairs), -jax.nn.logsumexp(exponents), jnp.nan))
