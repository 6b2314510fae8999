"""The linear probe as a metric: cross-validated loss of logistic regression."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from tta_jax._internal.typing import Array, ArrayLike
from tta_jax.core.heads import empty_head, own_losses
from tta_jax.fitting.logistic_regression import L2_GRID, minimise_cross_entropy
from tta_jax.metrics._inputs import LabelledFeatures
from tta_jax.metrics._registry import metric
from tta_jax.metrics.loo_knn import standardised
from tta_jax.probes import cross_validated


@metric(
    "nothing",
    cost="folds decays d^3 + n d K a step",
    reference="cross-validated",
    differentiable=False,
    takes=("fold",),
)
def linear_probe(
    target: LabelledFeatures, *, fold: ArrayLike | None = None, folds: int = 5
) -> Array:
    """Return minus the mean loss (nats) of items held out in turn, at the weight decay
    where it is least.

    Features are standardised over all items. The decay is chosen along a path of heads
    fitted by few steps; at it the heads of all folds are fitted to convergence.
    `tta_jax.linear_probe` is the ground truth, on a test set, and this its figure from
    one sample.

    Args:
      fold: `(n,)` fold in which an item is held out, -1 for never; dealt out in turn
        within every class when None.
      folds: how many there are, static.
    """
    if not isinstance(folds, int) or folds < 2:
        raise ValueError(f"folds: found {folds!r}; give a whole number of at least 2")
    part = _dealt(target, folds) if fold is None else jnp.asarray(fold)
    if part.shape != target.labels.shape or not jnp.issubdtype(part.dtype, jnp.integer):
        raise ValueError(
            f"fold: found shape {part.shape} and dtype {part.dtype}; give whole "
            f"numbers {target.labels.shape}"
        )
    return _linear_probe(target, part, folds=folds)


def _dealt(data: LabelledFeatures, folds: int) -> Array:
    """Return an item's place within its class, modulo `folds`, `(n,)`."""
    before = jnp.cumsum(data.one_hot, axis=0) - data.one_hot
    place = jnp.sum(before * data.one_hot, axis=1)
    return place.astype(jnp.int32) % folds


@partial(jax.jit, static_argnames=("folds",))
def _linear_probe(data: LabelledFeatures, part: Array, *, folds: int) -> Array:
    decays = jnp.asarray(L2_GRID, data.features.dtype)
    z, classes = standardised(data), data.one_hot.shape[1]
    losses = cross_validated(z, data.labels, data.weights, part, decays, classes, folds)
    best = decays[jnp.argmin(jnp.where(jnp.isfinite(losses), losses, jnp.inf))]
    start = empty_head(classes, data.features.shape[1], data.features.dtype)

    def one(number):
        held = jnp.where(part == number, data.weights, 0.0)
        learns = data.weights - held
        active = jnp.sum(data.one_hot * learns[:, None], axis=0) > 0
        head = minimise_cross_entropy(
            start,
            z,
            data.labels,
            learns,
            active,
            best,
            steps=3000,
            tolerance=float(jnp.finfo(z.dtype).eps) ** 0.75,
        )
        loss = own_losses(head, z, data.labels, active)
        return jnp.sum(jnp.where(held > 0, held * loss, 0.0)), jnp.sum(held)

    losses, sizes = jax.lax.map(one, jnp.arange(folds, dtype=part.dtype))
    return data.valid(-jnp.sum(losses) / jnp.sum(sizes))
