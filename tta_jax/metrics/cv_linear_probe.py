"""The linear probe as a metric: cross-validated loss of logistic regression."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from tta_jax._internal.typing import Array, ArrayLike
from tta_jax.fitting.logistic_regression import L2_GRID
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

    Features are standardised over all items; heads are fitted to convergence at every
    decay.
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
    classes = data.one_hot.shape[1]
    losses = cross_validated(
        standardised(data),
        data.labels,
        data.weights,
        part,
        decays,
        classes,
        folds,
        steps=3000,
        tolerance=float(jnp.finfo(data.features.dtype).eps) ** 0.75,
    )
    return data.valid(-jnp.min(jnp.where(jnp.isfinite(losses), losses, jnp.inf)))
