"""Average held-out figures over folds, and say how sure they are: bootstrap intervals
and a statement about the population.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from tta_jax._internal.numbers import real_number
from tta_jax.bounds.chain import ClassChain

_CELLS = 4_000_000  # random weights held at once


class ClassLosses(NamedTuple):
    """Losses of the items of one target class, those that carry mass.

    Attributes:
      source, source_mass: losses (nats) and masses of its source items.
      target, target_mass: of its target items.
      hits: whether the target items are classified correctly.
    """

    source: Float[np.ndarray, " n"]
    source_mass: Float[np.ndarray, " n"]
    target: Float[np.ndarray, " m"]
    target_mass: Float[np.ndarray, " m"]
    hits: Bool[np.ndarray, " m"]


def class_losses(found: ClassChain) -> ClassLosses:
    """Collect the items of one target class that carry mass, on the host."""
    q, r = np.asarray(found.source_mass), np.asarray(found.target_mass)
    losses = found.losses
    return ClassLosses(
        source=np.asarray(losses.source)[q > 0],
        source_mass=q[q > 0],
        target=np.asarray(losses.target)[r > 0],
        target_mass=r[r > 0],
        hits=np.asarray(losses.hit)[r > 0],
    )


def fold_weights(items: Int[np.ndarray, "*pairs folds"]) -> np.ndarray:
    """Share of each fold in the evaluated items, `(*pairs, folds)`; 0 without items."""
    return items / np.maximum(items.sum(-1, keepdims=True), 1)


def mean_over_folds(values: Any, weights: Float[np.ndarray, "*pairs folds"]) -> Any:
    """Average every leaf `(*pairs, folds)` of a tree over its last axis; folds without
    weight do not count, whatever they hold.
    """

    def mean(v):
        return np.sum(np.where(weights > 0, weights * np.asarray(v), 0.0), axis=-1)

    return jax.tree.map(mean, values)


def join_folds(
    folds: Sequence[Sequence[ClassLosses]], weights: Float[np.ndarray, " folds"]
) -> list[ClassLosses]:
    """Collect the classes of all folds, masses times the fold's weight: each fold has
    its own classifier, so its classes enter the bootstrap as classes of their own.
    """
    return [
        c._replace(source_mass=c.source_mass * w, target_mass=c.target_mass * w)
        for classes, w in zip(folds, weights, strict=True)
        for c in classes
    ]


def bootstrap(
    classes: Sequence[ClassLosses],
    prior_entropy: float,
    rng: np.random.Generator,
    replicates: int,
    level: float,
) -> dict[str, tuple[float, float]]:
    """Compute percentile intervals of held-out figures by the Bayesian bootstrap
    (exponential weights on the items, Rubin 1981).

    Args:
      classes: losses of every target class.
      prior_entropy: `H(p_T)`, held fixed in the score.
      rng: draws the weights.
      replicates: how many draws.
      level: of the intervals, between 0 and 1.

    Returns:
      `target_loss`, `target_accuracy`, `tight`, `score` -> (low, high) at the given
      level.
    """
    columns = zip(*(c for c in classes if c.target_mass.sum() > 0), strict=True)
    blocks = [list(column) for column in columns]
    source_losses, q, target_losses, r, hit = (np.concatenate(c) for c in blocks)
    n, m = ([len(mass) for mass in blocks[k]] for k in (1, 3))
    starts_s, starts_t = (np.cumsum([0, *sizes[:-1]]) for sizes in (n, m))
    # Class by class, each in the order of its losses: any number of small classes is
    # one array.
    losses = np.concatenate([source_losses, target_losses])
    of_class = np.concatenate(
        [np.repeat(np.arange(len(sizes)), sizes) for sizes in (n, m)]
    )
    order = np.lexsort((losses, of_class))
    with np.errstate(invalid="ignore"):
        gaps = (np.diff(losses[order]) * (np.diff(of_class[order]) == 0)).astype(
            np.float32
        )
    # Weights are float32, and so is what they are multiplied by: enough for intervals.
    source_losses, target_losses, hit, q, r = (
        v.astype(np.float32) for v in (source_losses, target_losses, hit, q, r)
    )

    loss, accuracy, tight, total = (np.zeros(replicates) for _ in range(4))
    step = max(1, _CELLS // len(order))
    for start in range(0, replicates, step):
        rows = slice(start, min(start + step, replicates))
        count = rows.stop - rows.start
        w_r = rng.standard_exponential((count, len(r)), np.float32) * r
        w_q = rng.standard_exponential((count, len(q)), np.float32) * q
        mass = np.add.reduceat(w_r, starts_t, axis=1)
        w_q *= np.repeat(mass / np.add.reduceat(w_q, starts_s, axis=1), n, axis=1)
        loss[rows], accuracy[rows], total[rows] = (
            w_r @ target_losses,
            w_r @ hit,
            mass.sum(1),
        )
        # `int max(F^-1, G^-1)` is the mean under F and what F lies above G.
        excess = np.cumsum(np.concatenate([w_q, -w_r], axis=1)[:, order[:-1]], axis=1)
        tight[rows] = w_q @ source_losses + np.maximum(excess, 0) @ gaps
    loss, accuracy, tight = loss / total, accuracy / total, tight / total
    score = (
        1 - loss / prior_entropy if prior_entropy > 0 else np.full_like(loss, np.nan)
    )
    tails = [50 * (1 - level), 50 * (1 + level)]
    figures = {
        "target_loss": loss,
        "target_accuracy": accuracy,
        "tight": tight,
        "score": score,
    }
    limits = {name: np.percentile(values, tails) for name, values in figures.items()}
    return {name: (float(low), float(high)) for name, (low, high) in limits.items()}


def kl_upper(mean: float, n: int, delta: float) -> float:
    """Largest p with `kl(mean || p) <= ln(1 / delta) / n`: an upper confidence bound
    for a mean of values in [0, 1].

    The Chernoff-Hoeffding bound in its relative-entropy form; never looser than
    Hoeffding's.
    """
    budget = math.log(1 / delta) / n

    def divergence(p: float) -> float:
        first = mean * math.log(mean / p) if mean > 0 else 0.0
        second = (1 - mean) * math.log((1 - mean) / (1 - p)) if mean < 1 else 0.0
        return first + second

    low, high = mean, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        if middle >= 1 or divergence(middle) > budget:
            high = middle
        else:
            low = middle
    return high


def population_bound(losses: np.ndarray, clip: float, confidence: float) -> float:
    """With probability `confidence` over i.i.d. items, `E min(loss, clip)` of a
    classifier fixed before is at most this, nats.

    Args:
      losses: `(n,)` nats, at least 0; infinite ones count as `clip`.
      clip: positive and finite.
      confidence: strictly between 0 and 1.

    Raises:
      ValueError: names the argument, what was found and what to do.
    """
    losses = np.asarray(losses)
    if losses.ndim != 1 or not losses.size or losses.dtype.kind not in "fiu":
        raise ValueError(
            f"losses: found shape {losses.shape} and dtype {losses.dtype}; give one "
            "real number per item"
        )
    # The logarithm of a probability of one may be off by a rounding error, on either
    # side of zero.
    if not (losses >= -1e-5).all():
        raise ValueError(
            f"losses: found {losses.min()}; the bound holds for losses of at least 0, "
            "without NaN"
        )
    if not 0 < real_number(clip) < math.inf:
        raise ValueError(f"clip: found {clip!r}; give a positive number of nats")
    if not 0 < real_number(confidence) < 1:
        raise ValueError(
            f"confidence: found {confidence!r}; give a level between 0 and 1, for "
            "example 0.95"
        )
    mean = float((np.clip(losses, 0, clip) / clip).mean())
    return clip * kl_upper(min(mean, 1.0), len(losses), 1 - confidence)
