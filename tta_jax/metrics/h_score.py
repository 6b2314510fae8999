"""H-score: how much of the features' variance, in every direction's own unit, lies
between classes (Bao et al. 2019).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tta_jax._internal.typing import Array
from tta_jax.core.linalg import least_squares
from tta_jax.metrics._inputs import LabelledFeatures
from tta_jax.metrics._registry import GRAM_COST, Facts, metric


def _too_few_items(facts: Facts) -> str | None:
    if facts.items > facts.dim + 1:
        return None
    return (
        f"with {facts.items} items and {facts.dim} features it is "
        f"{facts.classes - 1} whatever the labels are"
    )


@metric(
    "nothing", cost=GRAM_COST, reference="Bao et al. 2019, ICIP", refuse=_too_few_items
)
@jax.jit
def h_score(target: LabelledFeatures) -> Array:
    """Return `tr(cov(f)^+ cov(E[f | y]))`, between 0 and the number of classes less
    one.

    With fewer items than features (or as many) features without copies give K - 1
    whatever the labels are: the score says nothing then; `shrinkage_h_score` does.
    """
    features, counts = target.centred().features, target.counts
    # The score does not see the unit of a feature; Gram matrices of features in one
    # unit lose fewer digits.
    square = jnp.sum(features**2, axis=0)
    unit = jax.lax.stop_gradient(jnp.sqrt(jnp.where(square > 0, square, 1.0)))
    classes = target.one_hot / jnp.sqrt(jnp.where(counts > 0, counts, 1.0))[None]
    return explained(features / unit[None], classes)


@jax.custom_jvp
def explained(features: Array, targets: Array) -> Array:
    """Return `||P T||^2` for the projection P onto the columns of `features (n, d)` and
    `targets (n, K)`.
    """
    return least_squares(features, targets)[1]


@explained.defjvp
def _explained_jvp(primals, tangents):
    """Return `2 <(1 - P) T, dX X^+ T + dT> + 2 <P T, dT>`: only what turns the span out
    of itself counts.
    """
    (features, targets), (by_features, by_targets) = primals, tangents
    coefficients, value = least_squares(features, targets)
    inside = features @ coefficients
    return value, 2 * jnp.sum(
        (targets - inside) * (by_features @ coefficients)
    ) + 2 * jnp.sum(inside * by_targets)
