"""PARC: do items that differ in features differ in class? (Bolya et al. 2021)"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tta_jax._internal.typing import Array
from tta_jax.metrics._inputs import LabelledFeatures
from tta_jax.metrics._registry import Facts, metric

MOST_PAIRS = 100_000_000  # pairs of items that are held
_TIE = 32  # rounding units: distances that differ by less are equal


def _too_many_pairs(facts: Facts) -> str | None:
    pairs = facts.items * (facts.items - 1) // 2
    return (
        f"needs memory for {pairs:,} pairs of items; thin the task"
        if pairs > MOST_PAIRS
        else None
    )


@metric(
    "nothing",
    cost="n^2 (d + ln n); memory n^2",
    reference="Bolya et al. 2021, arXiv 2111.06977",
    differentiable=False,
    refuse=_too_many_pairs,
    undefined="an item's features are all alike, so it has no correlation with others",
)
@jax.jit
def parc(target: LabelledFeatures) -> Array:
    """Return the Spearman correlation, over all pairs of items, of `1 - corr(features)`
    and `1 - corr(one-hot labels)`; in [-1, 1].

    Features are standardised first, correlations are over the d features of two items.
    Ranks of ties are averaged, and label pairs are exact ties: as correlations of
    one-hot rows, which released code takes, they differ in their last digits, and
    Spearman sees an order in that. Needs memory for all n (n - 1) / 2 pairs. (Released
    code gives 100 times this.)
    """
    data = target.centred()
    n = len(data.labels)
    variance = jnp.sum(data.features**2, axis=0) / data.size
    z = data.features / jnp.sqrt(jnp.where(variance > 0, variance, 1.0))[None]
    z = z - jnp.mean(z, axis=1, keepdims=True)
    norm = jnp.sqrt(jnp.sum(z**2, axis=1))
    unit = z / jnp.where(norm > 0, norm, 1.0)[:, None]
    first, second = jnp.triu_indices(n, 1)
    counts = (data.weights[first] > 0) & (data.weights[second] > 0)
    distance = 1 - (unit @ unit.T)[first, second]
    # Copies give products that differ in their last digits; they are ties.
    step = _TIE * jnp.finfo(distance.dtype).eps
    distance = jnp.round(distance / step) * step
    differ = (data.labels[first] != data.labels[second]).astype(distance.dtype)
    # An item whose features are all alike has no correlation with any other.
    distance = jnp.where(jnp.any((norm == 0) & (data.weights > 0)), jnp.nan, distance)
    ranks, total = (
        average_ranks(jnp.where(counts, distance, jnp.inf)),
        jnp.sum(counts, dtype=distance.dtype),
    )
    weights = counts.astype(distance.dtype)
    ranks = jnp.where(counts, ranks - (total + 1) / 2, 0.0)
    # Two values only: their ranks are a straight line of the values themselves.
    differ = weights * (differ - jnp.sum(weights * differ) / total)
    return jnp.sum(ranks * differ) / jnp.sqrt(
        jnp.sum(ranks**2) * jnp.sum(differ**2)
    ) + 0.0 * jnp.max(distance)


def average_ranks(values: Array) -> Array:
    """Return ranks from 1 of `values (m,)`, ties averaged, `(m,)`."""
    size = len(values)
    order = jnp.argsort(values)
    ordered = values[order]
    new = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
    place = jnp.arange(size)
    start = jax.lax.cummax(jnp.where(new, place, 0))
    ends = jnp.concatenate([new[1:], jnp.ones(1, bool)])
    end = jax.lax.cummin(jnp.where(ends, place, size), reverse=True)
    return (
        jnp.zeros_like(values).at[order].set((start + end).astype(values.dtype) / 2 + 1)
    )
