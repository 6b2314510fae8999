"""The regularised linear discriminant that SFDA, NCTI and ETran share."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tta_jax._internal.typing import Array
from tta_jax.core.linalg import eigh, gram, significant
from tta_jax.metrics._inputs import LabelledFeatures

LEAST_SHRINKAGE = 1e-10  # or the rounding unit of the features, where that is larger


class Within(NamedTuple):
    """Covariance of the features around their class means, `S_W = V diag(values) V^T`,
    by its spectrum.

    Shrinkage may be as small as 1e-10: the spectrum keeps the digits that a sum of
    matrices would lose.

    Attributes:
      values: `(r,)`, 0 for what is rounding; r = min(n, d).
      vectors: V `(d, r)`, orthonormal; where r < d, zero columns for values of 0.
      level: `tr(S_W) / d`.
    """

    values: Array
    vectors: Array
    level: Array

    def power(self, matrix: Array, share: Array, exponent: float) -> Array:
        """`((1 - s) S_W + s level I)^exponent matrix` for `matrix (d, k)`."""
        alone = share * self.level
        inside = self.vectors.T @ matrix
        found = self.vectors @ (
            (((1 - share) * self.values + alone) ** exponent)[:, None] * inside
        )
        if self.vectors.shape[1] == len(matrix):
            return found
        # What is left over may be multiplied by 1e10: it is taken twice, so that
        # nothing of the inside is in it.
        outside = matrix - self.vectors @ inside
        return found + alone**exponent * (
            outside - self.vectors @ (self.vectors.T @ outside)
        )


def within(data: LabelledFeatures, dim: Array | int | None = None) -> Within:
    """The spectrum of S_W. `dim` is the number of features that count, where some are
    nothing but zeros.
    """
    rest = data.residuals() / jnp.sqrt(data.size)
    wide = rest.shape[0] < rest.shape[1]
    values, vectors = eigh(gram(rest.T if wide else rest))
    alive = significant(values, 8)
    values = jnp.where(alive, values, 0.0)
    if wide:
        vectors = jnp.where(
            alive[None],
            rest.T @ (vectors / jnp.sqrt(jnp.where(alive, values, 1.0))[None]),
            0.0,
        )
    level = jnp.sum(rest**2) / (rest.shape[1] if dim is None else dim)
    return Within(values, vectors, level)


def at_least(share: Array) -> Array:
    """A share that can be told from 0."""
    return jnp.maximum(share, max(LEAST_SHRINKAGE, float(jnp.finfo(share.dtype).eps)))


def adaptive_shrinkage(spectrum: Within) -> Array:
    """`max(exp(-5 lambda), 1e-10)`, lambda the largest eigenvalue of S_W (released code
    takes three power iterations for it).
    """
    return at_least(jnp.exp(-5 * jnp.max(spectrum.values)))


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


def discriminant(
    data: LabelledFeatures, spectrum: Within, share: Array
) -> Discriminant:
    """Fitted to the items; features should be centred, which costs nothing and saves
    digits.
    """
    means = data.class_means
    weight = spectrum.power(means.T, share, -1.0).T
    prior = jnp.where(
        data.present, jnp.log(jnp.where(data.present, data.shares, 1.0)), -jnp.inf
    )
    return Discriminant(weight, prior - 0.5 * jnp.sum(means * weight, axis=1))
