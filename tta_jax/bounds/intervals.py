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

_FEW = 5  # items of a class
LEAST_GROUPS = 3  # groups of target items
_CELLS = 4_000_000  # random weights held at once


class ClassLosses(NamedTuple):
    """Losses of the items of one target class, those that carry mass.

    Attributes:
      source, source_mass: losses (nats) and masses of its n source items.
      target, target_mass: of its m target items.
      hits: whether the target items are classified correctly.
      by_class: losses of the target items for every class.
      source_groups, target_groups: items of one group are drawn together.
      label: the class.
    """

    source: Float[np.ndarray, " n"]
    source_mass: Float[np.ndarray, " n"]
    target: Float[np.ndarray, " m"]
    target_mass: Float[np.ndarray, " m"]
    hits: Bool[np.ndarray, " m"]
    by_class: Float[np.ndarray, "m K"]
    source_groups: Int[np.ndarray, " n"]
    target_groups: Int[np.ndarray, " m"]
    label: int


def class_losses(
    found: ClassChain,
    label: int,
    groups: tuple[np.ndarray, np.ndarray] | None = None,
) -> ClassLosses:
    """Collect the items of one target class that carry mass, on the host.

    Args:
      found: of the class.
      label: the class.
      groups: of all source and all target items, numbers of what is drawn together;
        None draws every item alone.
    """
    q, r = np.asarray(found.source_mass), np.asarray(found.target_mass)
    losses = found.losses
    items = np.asarray(found.source_items)[q > 0], np.asarray(found.target_items)[r > 0]
    if groups is not None:
        items = groups[0][items[0]], groups[1][items[1]]
    return ClassLosses(
        source=np.asarray(losses.source)[q > 0],
        source_mass=q[q > 0],
        target=np.asarray(losses.target)[r > 0],
        target_mass=r[r > 0],
        hits=np.asarray(losses.hit)[r > 0],
        by_class=np.asarray(losses.by_class)[r > 0].astype(np.float32),
        source_groups=items[0],
        target_groups=items[1],
        label=label,
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
    joined, start = [], 0
    for classes, w in zip(folds, weights, strict=True):
        joined += [
            c._replace(
                source_mass=c.source_mass * w,
                target_mass=c.target_mass * w,
                # Folds share no group of held-out items.
                source_groups=c.source_groups + start,
                target_groups=c.target_groups + start,
            )
            for c in classes
        ]
        start += 1 + max(
            (
                int(groups.max(initial=0))
                for c in classes
                for groups in (c.source_groups, c.target_groups)
            ),
            default=0,
        )
    return joined


class Intervals(NamedTuple):
    """What `bootstrap` finds.

    Attributes:
      limits: `target_loss`, `target_accuracy`, `tight`, `score` -> (low, high); empty
        where there are fewer than 3 groups of target items.
      informative: whether `tight` is below guessing: "yes" or "no" where the interval
        of the paired difference lies on one side of 0, else "too few items".
    """

    limits: dict[str, tuple[float, float]]
    informative: str


def bootstrap(
    classes: Sequence[ClassLosses],
    prior_entropy: float,
    rng: np.random.Generator,
    replicates: int,
    level: float,
) -> Intervals:
    """Compute percentile intervals of held-out figures by the Bayesian bootstrap
    (exponential weights, Rubin 1981) with a pseudo-observation.

    Every replicate gets one item more: one of the target items with a class drawn by
    the shares. Without it, items that are all classified correctly would leave no doubt
    however few they are (docs/theory.md, section 6.1). Groups are drawn whole. Where no
    two items share a group, the accuracy's interval is that of Clopper and Pearson.

    Args:
      classes: losses of every target class.
      prior_entropy: `H(p_T)`, held fixed in the score.
      rng: draws the weights.
      replicates: how many draws.
      level: of the intervals, between 0 and 1.
    """
    classes = [c for c in classes if c.target_mass.sum() > 0]
    drawn = _Replicates.of(classes, rng, replicates)
    if drawn.target_groups.max(initial=-1) < LEAST_GROUPS - 1:
        return Intervals({}, "too few items")
    blocks = [list(column) for column in zip(*classes, strict=True)]
    source_losses, q, target_losses, r, hit = (np.concatenate(c) for c in blocks[:5])
    # The pseudo-observations are further target items of their classes, each with
    # weight in its own replicate alone.
    target_losses = np.concatenate([target_losses, drawn.losses])
    hit = np.concatenate([hit, drawn.hits])
    labels = np.array([c.label for c in classes])
    n, m = ([len(mass) for mass in blocks[k]] for k in (1, 3))
    of_source, of_target = (np.repeat(np.arange(len(v)), v) for v in (n, m))
    of_target = np.concatenate([of_target, drawn.block])
    share = np.bincount(of_target[: len(r)], r, len(classes))
    share_of_label = np.bincount(labels, share, labels.max() + 1)
    with np.errstate(divide="ignore"):  # of classes that no item has
        guess = -np.log(share_of_label / share.sum())
    guesses = guess[np.concatenate([labels[of_target[: len(r)]], drawn.label])]
    # Class by class, each in the order of its losses: any number of small classes is
    # one array.
    losses = np.concatenate([source_losses, target_losses])
    of_class = np.concatenate([of_source, of_target])
    order = np.lexsort((losses, of_class))
    with np.errstate(invalid="ignore"):
        gaps = (np.diff(losses[order]) * (np.diff(of_class[order]) == 0)).astype(
            np.float32
        )
    # Weights are float32, and so is what they are multiplied by: enough for intervals.
    source_losses, target_losses, hit, guesses, q, r = (
        v.astype(np.float32) for v in (source_losses, target_losses, hit, guesses, q, r)
    )
    starts = np.cumsum([0, *n[:-1]])
    count = len(classes)
    into = (of_target[:, None] == np.arange(count)[None]).astype(np.float32)

    def evaluate(w_q, w_r):
        """Loss, accuracy, tight and the loss of guessing for rows of weights."""
        w_r = w_r / w_r.sum(1, keepdims=True)
        have = np.add.reduceat(w_q, starts, axis=1)
        w_q = w_q * np.repeat(w_r @ into / have, n, axis=1)
        # `int max(F^-1, G^-1)` is the mean under F and what F lies above G.
        excess = np.cumsum(np.concatenate([w_q, -w_r], axis=1)[:, order[:-1]], axis=1)
        tight = w_q @ source_losses + np.maximum(excess, 0) @ gaps
        return w_r @ target_losses, w_r @ hit, tight, w_r @ guesses

    step = max(1, _CELLS // len(order))
    parts = []
    for start in range(0, replicates, step):
        rows = slice(start, min(start + step, replicates))
        w_r = np.zeros((rows.stop - rows.start, len(target_losses)), np.float32)
        w_q = drawn.weights(rng, drawn.source_groups, rows) * q
        w_r[:, : len(r)] = drawn.weights(rng, drawn.target_groups, rows) * r
        extra = np.arange(rows.start, rows.stop)
        w_r[extra - rows.start, len(r) + extra] = drawn.mass[rows] * r.sum()
        parts.append(evaluate(w_q, w_r))
    loss, accuracy, tight, guessing = (
        np.concatenate(v).astype(float) for v in zip(*parts, strict=True)
    )
    plain = np.concatenate([r, np.zeros(replicates, np.float32)])
    (own_loss,), _, (own_tight,), _ = evaluate(q[None], plain[None])
    items = (int(drawn.target_groups.max()) + 1) / len(classes)
    excess = without_bias(tight - loss, own_tight - own_loss, items)
    low_tight, high_tight = loss + excess[0], loss + excess[1]
    score = (
        1 - loss / prior_entropy if prior_entropy > 0 else np.full_like(loss, np.nan)
    )
    figures = {
        "target_loss": (loss, loss),
        "target_accuracy": (accuracy, accuracy),
        "tight": (low_tight, high_tight),
        "score": (score, score),
    }
    limits = {name: ends(a, b, level) for name, (a, b) in figures.items()}
    if drawn.alone:
        limits["target_accuracy"] = clopper_pearson(hit[: len(r)], r, level)
    low, high = ends(low_tight - guessing, high_tight - guessing, level)
    informative = "yes" if high < 0 else "no" if low > 0 else "too few items"
    return Intervals(limits, informative)


def ends(
    lower: Float[np.ndarray, " replicates"],
    upper: Float[np.ndarray, " replicates"],
    level: float,
) -> tuple[float, float]:
    """Percentiles of replicates: of some for the lower end, of others for the upper."""
    low, high = 50 * (1 - level), 50 * (1 + level)
    return float(np.percentile(lower, low)), float(np.percentile(upper, high))


def without_bias(
    excess: Float[np.ndarray, " replicates"], own: float, items: float
) -> tuple[np.ndarray, np.ndarray]:
    """Shift replicates of a distance by its bias, more for the lower end of an interval
    than for the upper one, since the bias itself is an estimate.

    A distance between samples is too large on average, and one between samples drawn
    anew from them by about as much again: what the replicates' mean exceeds the
    sample's value by is taken from them once for the upper end. For the lower end twice
    the sample's is taken, too: the weights of m items vary by (m - 1) / (m + 1) of the
    variance of m items drawn from the population, so the bias of the sample is larger
    than that of its replicates. Never below 0; 0 for the lower end where a class has
    less than 5.

    Args:
      excess: the replicates.
      own: the sample's value.
      items: target items of a class, or groups of them, on average.

    Returns:
      Replicates for the lower and for the upper end, `(replicates,)` each.
    """
    bias = max(float(excess.mean()) - own, 0.0)
    factor = np.sqrt((items + 1) / max(items - 1, 0.5))
    low, high = (excess - k * bias for k in (1 + 2 * factor, 1.0))
    if items < _FEW:  # replicates of so few items do not tell the bias
        low = np.zeros_like(excess)
    return np.maximum(low, 0.0), np.maximum(high, 0.0)


class PseudoObservations(NamedTuple):
    """The item more of every replicate (docs/theory.md, section 6.1).

    Attributes:
      at: `(replicates,)`, which of the target items it is.
      label: its class.
      mass: its weight, in shares of all items.
    """

    at: Int[np.ndarray, " replicates"]
    label: Int[np.ndarray, " replicates"]
    mass: Float[np.ndarray, " replicates"]

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        replicates: int,
        items: Int[np.ndarray, " m"],
        share: Float[np.ndarray, " K"],
        groups: int,
    ) -> PseudoObservations:
        """Draw an item with equal probability and a class by the shares, as heavy as
        one group on average.

        Args:
          rng: draws.
          replicates: how many.
          items: the target items.
          share: of the classes; any sum.
          groups: how many groups the items are.
        """
        return cls(
            at=rng.choice(items, replicates).astype(np.int32),
            label=rng.choice(len(share), replicates, p=share / share.sum()).astype(
                np.int32
            ),
            mass=rng.standard_exponential(replicates) / groups,
        )


class _Replicates(NamedTuple):
    """What replicates draw.

    Attributes:
      source_groups, target_groups: `(n,)` and `(m,)`, numbered from 0.
      alone: whether no two target items share a group.
      losses, hits, label, block, mass: `(replicates,)`, the pseudo-observations: their
        losses, whether they are right, their classes, the blocks they belong to, and
        their weights in shares of all.
    """

    source_groups: np.ndarray
    target_groups: np.ndarray
    alone: bool
    losses: np.ndarray
    hits: np.ndarray
    label: np.ndarray
    block: np.ndarray
    mass: np.ndarray

    @classmethod
    def of(
        cls, classes: Sequence[ClassLosses], rng: np.random.Generator, replicates: int
    ) -> _Replicates:
        labels = np.array([c.label for c in classes])
        share = np.array([c.target_mass.sum() for c in classes])
        sizes = [len(c.target) for c in classes]
        home = np.repeat(np.arange(len(classes)), sizes)
        by_class = np.concatenate([c.by_class for c in classes])

        def numbered(name):
            groups = np.concatenate([getattr(c, name) for c in classes])
            return np.unique(groups, return_inverse=True)[1]

        target = numbered("target_groups")
        number = int(target.max(initial=0)) + 1  # one group more
        at, label, mass = PseudoObservations.draw(
            rng, replicates, np.arange(len(home)), np.bincount(labels, share), number
        )
        losses = by_class[at, label].astype(np.float64)
        hits = by_class[at].argmin(1) == label
        # The block of that class in the fold of the item, or of another fold.
        fold = np.cumsum(np.r_[0, np.diff(labels) <= 0])
        place = {(f, k): b for b, (f, k) in enumerate(zip(fold, labels, strict=True))}
        any_fold = {k: b for b, k in enumerate(labels)}
        block = np.array(
            [
                place.get((fold[home[i]], k), any_fold[k])
                for i, k in zip(at, label, strict=True)
            ],
            int,
        )
        return cls(
            source_groups=numbered("source_groups"),
            target_groups=target,
            alone=len(target) == target.max(initial=-1) + 1,
            losses=losses,
            hits=hits,
            label=label,
            block=block,
            mass=mass.astype(np.float32),
        )

    @staticmethod
    def weights(
        rng: np.random.Generator, groups: np.ndarray, rows: slice
    ) -> np.ndarray:
        """Exponential weights of groups, `(rows, items)`."""
        size = (rows.stop - rows.start, int(groups.max(initial=-1)) + 1)
        return rng.standard_exponential(size, np.float32)[:, groups]


def clopper_pearson(
    hits: np.ndarray, mass: np.ndarray, level: float
) -> tuple[float, float]:
    """Compute the exact interval of a share, by the binomial distribution.

    Items of unequal weight count as many as have the same variance.

    Args:
      hits: `(n,)` of 0 and 1.
      mass: `(n,)`, weights.
      level: between 0 and 1.
    """
    from scipy.special import betaincinv

    share = mass.astype(float) / mass.sum()
    number = 1 / np.sum(share**2)
    right = number * float(share @ hits)
    tail = (1 - level) / 2
    wrong = max(number - right, 0.0)
    low = betaincinv(right, wrong + 1, tail) if right > 0 else 0.0
    high = betaincinv(right + 1, wrong, 1 - tail) if wrong > 1e-9 * number else 1.0
    return float(low), float(high)


# Bets: shares of what is at risk.
_BETS = np.geomspace(0.05, 0.97, 6)


def betting_bound(values: Float[np.ndarray, " n"], delta: float) -> float:
    """Compute an upper confidence bound of a mean of independent values in [0, 1], by
    bets against it (docs/theory.md, section 6.2).

    Whoever bets the share c of what is at risk that a mean is below m has
    `prod_i (1 + c (m - x_i) / (1 - m))` times the stake in the end, which is 1 on
    average at most if the mean is m or more. The bound is where the average over
    several c reaches 1 / delta. Values need not have the same distribution: the bound
    is for the average of their means.

    Args:
      values: the x_i.
      delta: probability with which the bound may be too low.
    """
    values = np.asarray(values, float)
    wanted = math.log(1 / delta)

    def wealth(m):
        logs = np.log1p(_BETS[:, None] * ((m - values) / (1 - m))[None]).sum(1)
        top = logs.max()
        return top + math.log(np.exp(logs - top).mean())

    low, high = float(values.mean()), 1.0
    for _ in range(100):
        middle = (low + high) / 2
        if middle >= 1 or wealth(middle) >= wanted:
            high = middle
        else:
            low = middle
    return high


def population_bound(losses: np.ndarray, clip: float, confidence: float) -> float:
    """With probability `confidence` over independent items, `E min(loss, clip)` of a
    classifier fixed before is at most this, nats: the expectation at the class shares
    of the items, if these were drawn class by class.

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
    return clip * betting_bound(np.clip(losses, 0, clip) / clip, 1 - confidence)
