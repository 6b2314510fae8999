"""The regularised linear discriminant that SFDA, NCTI and ETran share."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tta_jax.linalg import eigh, solve_positive
from tta_jax.metrics.labelled import Array, Labelled

LEAST_SHRINKAGE = 1e-10


class Discriminant(NamedTuple):
    """Gaussian classes with one covariance, `(1 - s) S_W + s tr(S_W) / d I`.

    Attributes:
      weight: `(K, d)`.
      bias: `(K,)`; -inf for a class without items.
    """

    weight: Array
    bias: Array

    def posterior(self, features: Array) -> Array:
        """`P(class | features)`, `(n, K)`."""
        return jax.nn.softmax(features @ self.weight.T + self.bias[None], axis=1)


def within(data: Labelled) -> Array:
    """`S_W (d, d)`: covariance of the features around their class means."""
    rest = data.residuals()
    return rest.T @ rest / data.size


def adaptive_shrinkage(data: Labelled) -> Array:
    """`max(exp(-5 lambda), 1e-10)`, lambda the largest eigenvalue of S_W (released code takes three power iterations for it)."""
    rest = data.residuals()
    gram = rest @ rest.T if rest.shape[0] <= rest.shape[1] else rest.T @ rest
    largest = eigh(gram / data.size)[0][-1]
    return jnp.maximum(jnp.exp(-5 * largest), LEAST_SHRINKAGE)


def shrunk(matrix: Array, share: Array) -> Array:
    """`(1 - s) matrix + s tr(matrix) / d I`."""
    dim = matrix.shape[0]
    return (1 - share) * matrix + share * jnp.trace(matrix) / dim * jnp.eye(dim, dtype=matrix.dtype)


def discriminant(data: Labelled, share: Array) -> Discriminant:
    """Fitted to the items; features should be centred, which costs nothing and saves digits."""
    means = data.class_means
    weight = solve_positive(shrunk(within(data), share), means.T).T
    prior = jnp.where(data.present, jnp.log(jnp.where(data.present, data.shares, 1.0)), -jnp.inf)
    return Discriminant(weight, prior - 0.5 * jnp.sum(means * weight, axis=1))
