"""NLEEP: LEEP with the components of a Gaussian mixture of the features in place of
source classes (Li et al. 2021).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tta_jax._internal.numbers import whole_number
from tta_jax._internal.padding import geometric_bucket
from tta_jax._internal.typing import Array
from tta_jax.core.linalg import one_at_a_time
from tta_jax.metrics._inputs import LabelledFeatures, concrete
from tta_jax.metrics._kmeans import k_means
from tta_jax.metrics._principal_axes import principal
from tta_jax.metrics._registry import GRAM_COST, Facts, metric
from tta_jax.metrics.leep import expected_log_prediction

ENERGY = 0.8
COMPONENTS_PER_CLASS = 5
RIDGE = 1e-6  # added to every covariance


def _too_few_for_mixture(facts: Facts) -> str | None:
    number = COMPONENTS_PER_CLASS * facts.classes
    return (
        f"a mixture of {number} Gaussians needs as many items; there are {facts.items}"
        if facts.items < number
        else None
    )


@metric(
    "nothing",
    cost=f"{GRAM_COST}; K n p^2 an EM step",
    reference="Li et al. 2021, arXiv 2011.11200",
    differentiable=False,
    refuse=_too_few_for_mixture,
    takes=("key",),
)
def nleep(
    target: LabelledFeatures,
    *,
    components: int | None = None,
    dimensions: int | None = None,
    iterations: int = 100,
    tolerance: float = 1e-3,
    key: Array | None = None,
) -> Array:
    """Return LEEP of the posteriors of a Gaussian mixture fitted to principal
    components of the features, nats, at most 0.

    Number of components and seed change the order of encoders: fix both. Components
    start from k-means++ and ten rounds of k-means; EM with full covariances goes on
    until the mean log-likelihood gains less than `tolerance`.

    Args:
      components: of the mixture, static; 5 for each class when None. At most n.
      dimensions: principal components kept, static; those that hold 80 % of the
        variance when None, which needs concrete features.
      iterations: most steps of EM, static.
      tolerance: of EM, nats.
      key: decides the start; `jax.random.key(0)` when None.
    """
    data = target.centred()
    number = (
        data.one_hot.shape[1] * COMPONENTS_PER_CLASS
        if components is None
        else whole_number(components)
    )
    items = (
        int(data.size)
        if concrete(data.size) and not jnp.isnan(data.size)
        else len(data.labels)
    )
    if number is None or not 1 <= number <= items:
        wanted = number if components is None else components
        raise ValueError(
            f"components: found {wanted!r} for {items} items; give a whole number from "
            "1 to that of the items"
        )
    projected, squares = principal(data.features)
    if dimensions is None:
        if not concrete(squares):
            raise ValueError(
                "dimensions: give the number of principal components; under jit and "
                "vmap it cannot be chosen"
            )
        shares = np.cumsum(np.asarray(squares, np.float64))
        dimensions = (
            int(np.searchsorted(shares, ENERGY * shares[-1]) + 1)
            if shares[-1] > 0
            else 1
        )
    kept = whole_number(dimensions)
    if kept is None or not 1 <= kept <= projected.shape[1]:
        raise ValueError(
            f"dimensions: found {dimensions!r}; give a whole number from 1 to "
            f"{projected.shape[1]}"
        )
    key = jax.random.key(0) if key is None else key
    # Directions of zeros have the same density under every component, and few widths
    # are few programs.
    width = min(geometric_bucket(kept, 4), projected.shape[1])
    seen = jnp.where(jnp.arange(width)[None] < kept, projected[:, :width], 0.0)
    return _nleep(
        data._replace(features=seen),
        key,
        tolerance,
        components=number,
        iterations=iterations,
    )


@partial(jax.jit, static_argnames=("components", "iterations"))
def _nleep(
    data: LabelledFeatures,
    key: Array,
    tolerance: float,
    *,
    components: int,
    iterations: int,
) -> Array:
    start = k_means(data.features, data.weights, key, components)
    mixture = fit_mixture(data.features, data.weights, start, tolerance, iterations)
    posterior = jnp.exp(mixture.log_posterior) * data.weights[:, None]
    return expected_log_prediction(data, posterior)


class Mixture(NamedTuple):
    """A fitted mixture.

    Attributes:
      log_posterior: `(n, C)` of the components.
      log_likelihood: mean over the items, nats.
      rounds: EM steps taken.
    """

    log_posterior: Array
    log_likelihood: Array
    rounds: Array


def _whiten(covariance: Array) -> tuple[Array, Array]:
    """`L^-1` for `L L^T = covariance`, and `ln det L^-1`."""
    lower = jnp.linalg.cholesky(covariance)
    inverse = jax.scipy.linalg.solve_triangular(
        lower, jnp.eye(len(lower), dtype=lower.dtype), lower=True
    )
    return inverse, jnp.sum(jnp.log(jnp.diagonal(inverse)))


_whitened = one_at_a_time(_whiten)


def fit_mixture(
    x: Array, weights: Array, start: Array, tolerance: float | Array, iterations: int
) -> Mixture:
    """EM for Gaussians with full covariances from responsibilities `start (n, C)`; rows
    of padding have weight 0.
    """
    size, dim = jnp.sum(weights), x.shape[1]
    ridge = RIDGE * jnp.eye(dim, dtype=x.dtype)

    def log_joint(responsible):
        """`(n, C)` log of mass times density, after an M-step."""
        mass = jnp.sum(responsible, axis=0) + 10 * jnp.finfo(x.dtype).eps
        means = responsible.T @ x / mass[:, None]

        def one(component):
            mine, mean, total = component
            rest = x - mean[None]
            inverse, log_scale = _whitened(
                (mine[:, None] * rest).T @ rest / total + ridge
            )
            return log_scale - 0.5 * jnp.sum((rest @ inverse.T) ** 2, axis=1)

        densities = jax.lax.map(one, (responsible.T, means, mass)).T
        return (
            densities + (jnp.log(mass / size) - 0.5 * dim * jnp.log(2 * jnp.pi))[None]
        )

    def judge(joint):
        total = jax.nn.logsumexp(joint, axis=1)
        return joint - total[:, None], jnp.sum(
            jnp.where(weights > 0, total, 0.0)
        ) / size

    def step(carry):
        log_posterior, likelihood, _, count = carry
        new, now = judge(log_joint(jnp.exp(log_posterior) * weights[:, None]))
        return new, now, now - likelihood, count + 1

    def unfinished(carry):
        return (carry[3] < iterations) & (jnp.abs(carry[2]) >= tolerance)

    posterior, likelihood = judge(log_joint(start))
    begin = (posterior, likelihood, jnp.asarray(jnp.inf, x.dtype), jnp.asarray(1))
    posterior, likelihood, _, count = jax.lax.while_loop(unfinished, step, begin)
    return Mixture(posterior, likelihood, count)
