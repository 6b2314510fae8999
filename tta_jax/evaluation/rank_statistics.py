"""Is a score any good? How scores agree with the truth, what choosing by them costs,
how sure that is, which of two is better.

Scores and truth are tables `(targets, models)`, larger is better in both; what is not
finite is a blank. A statistic compares the models of one target; what is reported is
its mean over the targets where it is defined. Tables are small: all is NumPy, in
float64.

Intervals are percentiles of a bootstrap that draws targets and models anew, both at
once (the pigeonhole bootstrap of Owen 2007, which errs on the wide side). A draw is the
table of how often each was drawn, and statistics take such counts: a model that was
drawn twice is two models that tie.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tta_jax._internal.numbers import real_number, whole_number
from tta_jax._internal.serialization import storable
from tta_jax.tasks.splits import Seed, seed_from_key

Statistic = Callable[..., np.ndarray]
OVER = ("both", "targets", "models")
LEAST_IS_BEST = ("regret_1", "regret_3")
_EXACT = 12  # targets up to which every flip of signs is tried
_FLIPS = 9_999
_ROUNDING = 1e-12  # of differences
_MOST = 100_000  # replicates
_CELLS = 1 << 22  # counts of models held at once

# -- statistics ------------------------------------------------------------------------


class _Tables(NamedTuple):
    """T targets, M models, R draws of models.

    Attributes:
      scores, truth: `(T, M)`, 0 for a blank.
      known: `(T, M)` bool, where there is a truth.
      counts: `(R, T, M)` how often a model was drawn, 0 where its score or its truth is
        a blank.
      drawn: `(R, 1, M)` how often, blank or not.
    """

    scores: np.ndarray
    truth: np.ndarray
    known: np.ndarray
    counts: np.ndarray
    drawn: np.ndarray


def _public(function: Callable[[_Tables], np.ndarray]) -> Statistic:
    """Scores and truth `(..., M)` -> `(...)`, or with counts `(R, M)` of draws ->
    `(R, ...)`; NaN where it is not defined.
    """

    def statistic(scores: Any, truth: Any, counts: Any = None) -> np.ndarray:
        scores, truth = np.broadcast_arrays(
            np.asarray(scores, np.float64), np.asarray(truth, np.float64)
        )
        *lead, models = scores.shape
        scores, truth = scores.reshape(-1, models), truth.reshape(-1, models)
        seen, known = np.isfinite(scores), np.isfinite(truth)
        drawn = (
            np.ones((1, 1, models))
            if counts is None
            else np.asarray(counts, np.float64)[:, None]
        )
        tables = _Tables(
            np.where(seen, scores, 0.0),
            np.where(known, truth, 0.0),
            known,
            drawn * (seen & known),
            drawn,
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            found = function(tables)
        return found.reshape(lead) if counts is None else found.reshape(-1, *lead)

    statistic.__doc__ = function.__doc__
    return statistic


def _correlation(a: np.ndarray, b: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Pearson's over the last axis of `(..., M)`, each model as often as it counts."""
    size = counts.sum(-1, keepdims=True)

    def unit(v):
        return v / np.maximum(
            np.abs(v).max(-1, keepdims=True), np.finfo(float).tiny
        )  # squares keep within range

    x, y = (
        np.where(counts > 0, v - (counts * v).sum(-1, keepdims=True) / size, 0.0)
        for v in (unit(a), unit(b))
    )
    scale = np.sqrt((counts * x**2).sum(-1) * (counts * y**2).sum(-1))

    # A constant row leaves rounding behind.
    def width(v):
        return np.where(counts > 0, v, -np.inf).max(-1) - np.where(
            counts > 0, v, np.inf
        ).min(-1)

    flat = ~((width(a) > 0) & (width(b) > 0) & (scale > 0))
    return np.where(flat, np.nan, (counts * x * y).sum(-1) / scale).clip(-1, 1)


def _ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Ranks from 1 of `values (T, M)` in draws `(R, T, M)`, ties averaged;
    `(R, T, M)`.
    """
    below, equal = (
        compare(values[:, None, :], values[:, :, None])
        for compare in (np.less, np.equal)
    )

    def among(which):
        return np.swapaxes(
            np.swapaxes(counts, 0, 1) @ np.swapaxes(which, 1, 2).astype(float), 0, 1
        )

    return among(below) + (among(equal) + 1) / 2


def _tau(t: _Tables, weights: np.ndarray) -> np.ndarray:
    """Kendall's tau-b, a pair of models weighing the sum of both weights `(R, T, M)`,
    those of a model's copies added up.
    """
    s, r = (np.sign(v[:, :, None] - v[:, None, :]) for v in (t.scores, t.truth))

    def total(signs):
        return (
            ((np.swapaxes(weights, 0, 1) @ signs) * np.swapaxes(t.counts, 0, 1))
            .sum(-1)
            .T
        )

    scale = np.sqrt(total(s**2) * total(r**2))
    return np.where(scale > 0, total(s * r) / scale, np.nan)


def _hyperbolic(
    first: np.ndarray, second: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """`1 / (rank + 1)`, added over copies: ranks from 0 by falling `first (T, M)`, ties
    by falling `second`.
    """
    order = np.lexsort((second, first), axis=-1)[None, :, ::-1]
    ahead = np.cumsum(np.take_along_axis(counts, order, -1), -1).astype(int)
    harmonic = np.concatenate(
        [[0.0], np.cumsum(1 / np.arange(1, ahead.max(initial=0) + 1))]
    )
    weights = np.empty(counts.shape)
    np.put_along_axis(
        weights, order, np.diff(harmonic[ahead], axis=-1, prepend=0.0), -1
    )
    return weights


def _best_of_top(t: _Tables, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Expected best truth among the k models of highest score, and the best truth of
    all models drawn, `(R, T)` each.

    Of models that tie at the margin each choice is as likely. A model without a score
    cannot be chosen.
    """
    there = t.counts > 0
    scores = np.where(there, t.scores, -np.inf)
    order = np.argsort(-scores, axis=-1, kind="stable")
    size = t.counts.sum(-1)
    ahead = np.cumsum(np.take_along_axis(t.counts, order, -1), -1)
    places = np.minimum(k, size)
    # The score of the last of the k, copies counted.
    last = np.take_along_axis(
        order,
        (ahead < places[..., None])
        .sum(-1, keepdims=True)
        .clip(max=order.shape[-1] - 1),
        -1,
    )
    margin = np.take_along_axis(scores, last, -1)
    sure, tied = (
        there & (scores > margin),
        np.where(there & (scores == margin), t.counts, 0.0),
    )
    free, left_over = places - (sure * t.counts).sum(-1), tied.sum(-1)
    floor = np.where(sure, t.truth, -np.inf).max(-1)
    # Going down from the best: a tied model that is better than the sure ones is the
    # choice, if no better one is and one of its
    # copies is drawn for a free place.
    order = np.argsort(-t.truth, axis=-1, kind="stable")
    expected, left = np.zeros(size.shape), np.ones(size.shape)
    for place in range(order.shape[-1]):
        model = order[:, place]
        copies = np.take_along_axis(tied, model[None, :, None], -1)[..., 0]
        value = np.take_along_axis(t.truth, model[:, None], -1)[None, :, 0]
        missed = np.ones(size.shape)
        for one in range(int(copies.max(initial=0))):
            missed = missed * np.where(
                one < copies, 1 - free / np.maximum(left_over - one, 1), 1.0
            ).clip(0, 1)
        left_over = left_over - copies
        chance = np.where(value > floor, 1 - missed, 0.0)
        expected = expected + left * chance * value
        left = left * (1 - chance)
    expected = expected + np.where(
        left > 0, left * np.where(np.isfinite(floor), floor, 0.0), 0.0
    )
    best = np.where(t.known & (t.drawn > 0), t.truth, -np.inf).max(-1)
    return np.where(size > 0, expected, np.nan), best


@_public
def pearson(t: _Tables) -> np.ndarray:
    """Pearson correlation."""
    return _correlation(t.scores[None], t.truth[None], t.counts)


@_public
def spearman(t: _Tables) -> np.ndarray:
    """Spearman correlation: Pearson's of the ranks, ties averaged."""
    return _correlation(_ranks(t.scores, t.counts), _ranks(t.truth, t.counts), t.counts)


@_public
def kendall(t: _Tables) -> np.ndarray:
    """Kendall's tau-b."""
    return _tau(t, t.counts)


def _by_score(t: _Tables) -> np.ndarray:
    return _tau(t, _hyperbolic(t.scores, t.truth, t.counts))


def _by_truth(t: _Tables) -> np.ndarray:
    return _tau(t, _hyperbolic(t.truth, t.scores, t.counts))


@_public
def weighted_tau_by_score(t: _Tables) -> np.ndarray:
    """Vigna's weighted tau, hyperbolic weights by rank of the score:
    `scipy.stats.weightedtau(scores, truth, rank=None)`.
    """
    return _by_score(t)


@_public
def weighted_tau_by_truth(t: _Tables) -> np.ndarray:
    """The same by rank of the truth:
    `scipy.stats.weightedtau(truth, scores, rank=None)`.
    """
    return _by_truth(t)


@_public
def weighted_tau(t: _Tables) -> np.ndarray:
    """The mean of both, SciPy's default (`rank=True`) and what most papers print. The
    conventions may differ in sign: say which.
    """
    return (_by_score(t) + _by_truth(t)) / 2


def regret(k: int = 1) -> Statistic:
    """Truth of the best model less that of the best among the k of highest score; 0 is
    perfect. In the unit of the truth.

    A model whose score is a blank cannot be chosen, but may be the best.

    Raises:
      ValueError: if `k` is no whole number of at least 1.
    """
    if (whole_number(k) or 0) < 1:
        raise ValueError(f"k: found {k!r}; give a whole number of at least 1")

    def lost(t: _Tables) -> np.ndarray:
        chosen, best = _best_of_top(t, k)
        return best - chosen

    return _public(lost)


@_public
def relative_accuracy(t: _Tables) -> np.ndarray:
    """Truth of the chosen model as a share of the best model's."""
    chosen, best = _best_of_top(t, 1)
    return np.where(best > 0, chosen / best, np.nan)


STATISTICS: dict[str, Statistic] = {
    "pearson": pearson,
    "spearman": spearman,
    "kendall": kendall,
    "weighted_tau": weighted_tau,
    "weighted_tau_by_score": weighted_tau_by_score,
    "weighted_tau_by_truth": weighted_tau_by_truth,
    "regret_1": regret(1),
    "regret_3": regret(3),
    "relative_accuracy": relative_accuracy,
}


# -- means over targets, with intervals ------------------------------------------------


@storable
@dataclasses.dataclass(frozen=True, eq=False)
class Estimate:
    """A statistic's mean over targets.

    Attributes:
      value: the mean; NaN where no target defines it.
      low, high: of the bootstrap interval; NaN where no draw defines it.
      per_target: `(T,)`, NaN where it is not defined.
      without: `(T,)` the mean when that target is left out; NaN where nothing is left.
    """

    value: float
    low: float
    high: float
    per_target: np.ndarray
    without: np.ndarray

    @property
    def targets(self) -> int:
        """How many targets define it."""
        return int(np.isfinite(self.per_target).sum())


@storable
@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two scores on the models where neither is a blank.

    Attributes:
      statistic: its name.
      difference: the first's mean over targets less the second's.
      low, high: of the bootstrap interval, both scores on the same draws.
      p_value: two-sided, of flips of the signs of the targets' differences; every flip
        for up to 12 targets. With T targets it is 2^(1 - T) at least.
      first_better, second_better, ties: numbers of targets.
    """

    statistic: str
    difference: float
    low: float
    high: float
    p_value: float
    first_better: int
    second_better: int
    ties: int


class Draws(NamedTuple):
    """Draws of models `(R, M)` and of targets `(R, T)`: how often each was drawn."""

    models: np.ndarray
    targets: np.ndarray


def draw(shape: tuple[int, int], over: str, replicates: int, seed: Seed) -> Draws:
    """Bootstrap draws for tables of `shape (targets, models)`; what `over` leaves out
    is drawn once each.
    """
    rng = np.random.default_rng(seed)

    def times(size):
        return rng.multinomial(size, np.full(size, 1 / size), replicates).astype(float)

    def once(size):
        return np.ones((replicates, size))

    targets, models = shape
    return Draws(
        times(models) if over != "targets" else once(models),
        times(targets) if over != "models" else once(targets),
    )


def correlate(
    scores: Any,
    truth: Any,
    statistics: Sequence[str] | None = None,
    *,
    over: str = "both",
    replicates: int = 1000,
    interval: float = 0.95,
    key: jax.Array | Seed | None = None,
) -> dict[str, Estimate]:
    """How a score agrees with the truth, over the targets, with intervals.

    Args:
      scores, truth: `(targets, models)`, or `(models,)` for one target; larger is
        better; NaN for a blank.
      statistics: of `STATISTICS`; all when None.
      over: what the bootstrap draws anew: "both", "targets" (for exactly these models)
        or "models".
      replicates: of the bootstrap; 0 for no intervals.
      interval: their level.
      key: decides the draws; `jax.random.key(0)` when None.

    Raises:
      ValueError: names the argument, what was found and what to do.
    """
    scores, truth = _table(scores, "scores"), _table(truth, "truth")
    _same_shape(scores, truth, "truth")
    names = _names(statistics)
    draws = _draws(truth.shape, over, replicates, interval, key)
    return {name: estimate(name, scores, truth, draws, interval) for name in names}


def estimate(
    name: str, scores: np.ndarray, truth: np.ndarray, draws: Draws, interval: float
) -> Estimate:
    """One statistic of checked tables on given draws."""
    per_target = STATISTICS[name](scores, truth)
    low, high = _limits(_drawn_means(name, scores, truth, draws), interval)
    keep = ~np.eye(len(per_target), dtype=bool)
    without = np.array([_mean(per_target[row]) for row in keep])
    return Estimate(_mean(per_target), low, high, per_target, without)


def compare(
    first: Any,
    second: Any,
    truth: Any,
    statistic: str = "weighted_tau",
    *,
    over: str = "both",
    replicates: int = 1000,
    interval: float = 0.95,
    key: jax.Array | Seed | None = None,
) -> Comparison:
    """Paired test of two scores: whether the first agrees better with the truth;
    arguments as in `correlate`.

    Raises:
      ValueError: names the argument, what was found and what to do.
    """
    first, second, truth = (
        _table(first, "first"),
        _table(second, "second"),
        _table(truth, "truth"),
    )
    for name, table in (("first", first), ("second", second)):
        _same_shape(table, truth, name)
    (statistic,) = _names([statistic])
    draws = _draws(truth.shape, over, replicates, interval, key)
    both = np.isfinite(first) & np.isfinite(second)
    first, second = np.where(both, first, np.nan), np.where(both, second, np.nan)
    gaps = STATISTICS[statistic](first, truth) - STATISTICS[statistic](second, truth)
    drawn = [_drawn_values(statistic, table, truth, draws) for table in (first, second)]
    low, high = _limits(_weighted_means(drawn[0] - drawn[1], draws.targets), interval)
    gaps = gaps[np.isfinite(gaps)]
    better = np.where(
        np.abs(gaps) < _ROUNDING, 0.0, -gaps if statistic in LEAST_IS_BEST else gaps
    )
    return Comparison(
        statistic,
        _mean(gaps),
        low,
        high,
        sign_flip(gaps, seed_from_key(jax.random.key(0) if key is None else key)),
        int((better > 0).sum()),
        int((better < 0).sum()),
        int((better == 0).sum()),
    )


def sign_flip(gaps: np.ndarray, seed: Seed) -> float:
    """Two-sided p-value that differences `(T,)` are as likely to have the other sign;
    NaN for none.
    """
    if not len(gaps):
        return float("nan")
    if len(gaps) <= _EXACT:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(gaps))))
    else:
        flips = np.random.default_rng(seed).choice((1.0, -1.0), (_FLIPS, len(gaps)))
        signs = np.concatenate([np.ones((1, len(gaps))), flips])
    sums = np.abs(signs @ gaps)
    return float((sums >= sums[0] - _ROUNDING * np.abs(gaps).sum()).mean())


def mean_elsewhere(truth: Any) -> np.ndarray:
    """The static ranker: a model's mean truth on the other targets,
    `(targets, models)`; a blank where there is none.

    Raises:
      ValueError: names `truth`.
    """
    truth = _table(truth, "truth")
    known = np.isfinite(truth)
    total, number = np.where(known, truth, 0.0), known.astype(float)
    others = number.sum(0) - number
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(others > 0, (total.sum(0) - total) / others, np.nan)


def _drawn_values(
    name: str, scores: np.ndarray, truth: np.ndarray, draws: Draws
) -> np.ndarray:
    """`(R, T)` of a statistic on draws of models."""
    step = max(1, _CELLS // max(truth.size, 1))
    blocks = [
        draws.models[start : start + step]
        for start in range(0, len(draws.models), step)
    ]
    if not blocks:
        return np.empty((0, len(truth)))
    return np.concatenate([STATISTICS[name](scores, truth, block) for block in blocks])


def _drawn_means(
    name: str, scores: np.ndarray, truth: np.ndarray, draws: Draws
) -> np.ndarray:
    return _weighted_means(_drawn_values(name, scores, truth, draws), draws.targets)


def _weighted_means(values: np.ndarray, times: np.ndarray) -> np.ndarray:
    """`(R,)` means over targets of `(R, T)`, each as often as it was drawn; NaN where
    none defines it.
    """
    times = np.where(np.isfinite(values), times, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (times * np.where(times > 0, values, 0.0)).sum(1) / times.sum(1)


def _limits(means: np.ndarray, interval: float) -> tuple[float, float]:
    means = means[np.isfinite(means)]
    if not len(means):
        return float("nan"), float("nan")
    low, high = np.percentile(means, [50 * (1 - interval), 50 * (1 + interval)])
    return float(low), float(high)


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")


# -- validation -----------------------------------------------------------------------


def _table(values: Any, argument: str) -> np.ndarray:
    try:
        table = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"{argument}: found {type(values).__name__}; give numbers (targets, models)"
        ) from None
    if table.ndim not in (1, 2) or not table.size:
        raise ValueError(
            f"{argument}: found shape {table.shape}; give (targets, models), or "
            "(models,) for one target"
        )
    return np.atleast_2d(table)


def _same_shape(table: np.ndarray, truth: np.ndarray, argument: str) -> None:
    if table.shape != truth.shape:
        raise ValueError(
            f"{argument}: found tables of shape {table.shape} and {truth.shape}; give "
            "one value for each"
        )


def _names(statistics: Sequence[str] | None) -> list[str]:
    names = (
        list(STATISTICS)
        if statistics is None
        else [statistics]
        if isinstance(statistics, str)
        else list(statistics)
    )
    for name in names:
        check_statistic(name, "statistics")
    return names


def check_statistic(name: str, argument: str = "statistic") -> None:
    """Whether there is such a statistic.

    Raises:
      ValueError: names the argument.
    """
    if name not in STATISTICS:
        raise ValueError(
            f"{argument}: there is no {name!r}; choose among {', '.join(STATISTICS)}"
        )


def check_options(over: str, replicates: int, interval: float) -> int:
    """What a bootstrap is told; the number of replicates.

    Raises:
      ValueError: names the argument, what was found and what to do.
    """
    if over not in OVER:
        raise ValueError(f"over: found {over!r}; choose one of {', '.join(OVER)}")
    number = whole_number(replicates)
    if number is None or not 0 <= number <= _MOST:
        raise ValueError(
            f"replicates: found {replicates!r}; give a whole number up to {_MOST:,}, "
            "or 0 for no intervals"
        )
    if not 0 < real_number(interval) < 1:
        raise ValueError(
            f"interval: found {interval!r}; give a level between 0 and 1, for example "
            "0.95"
        )
    return number


def _draws(
    shape: Any,
    over: str,
    replicates: int,
    interval: float,
    key: jax.Array | Seed | None,
) -> Draws:
    number = check_options(over, replicates, interval)
    return draw(
        shape, over, number, seed_from_key(jax.random.key(0) if key is None else key)
    )
