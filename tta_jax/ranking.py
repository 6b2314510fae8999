"""Is a score any good? Correlation of scores with the truth, regret of what they choose, intervals and tests.

Scores and truth are tables `(targets, models)`, larger is better in both, NaN where a value is missing; one row may stand alone.
A statistic is computed for every target over its models and averaged over the targets. Tables are small: all is NumPy, in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# -- statistics: scores and truth (..., m) -> (...), NaN where undefined --------------------------------------------------


def pearson(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Pearson correlation over the last axis."""
    a, b = (v - v.mean(-1, keepdims=True) for v in (scores, truth))
    scale = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    # A constant row leaves rounding behind.
    flat = (np.ptp(scores, axis=-1) == 0) | (np.ptp(truth, axis=-1) == 0) | (scale == 0)
    return np.where(flat, np.nan, (a * b).sum(-1) / np.where(flat, 1.0, scale)).clip(-1, 1)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 over the last axis, ties averaged."""
    below = (values[..., None, :] < values[..., :, None]).sum(-1)
    equal = (values[..., None, :] == values[..., :, None]).sum(-1)
    return below + (equal + 1) / 2


def spearman(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Spearman correlation: Pearson's of the ranks, ties averaged."""
    return pearson(ranks(scores), ranks(truth))


def _tau(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | float) -> np.ndarray:
    """Kendall's tau-b with a weight `(..., m, m)` for every pair."""
    s, t = (np.sign(v[..., :, None] - v[..., None, :]) for v in (scores, truth))
    total = (s * t * weights).sum((-1, -2))
    scale = np.sqrt((s**2 * weights).sum((-1, -2)) * (t**2 * weights).sum((-1, -2)))
    return np.where(scale > 0, total / np.where(scale > 0, scale, 1.0), np.nan)


def kendall(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Kendall's tau-b."""
    return _tau(scores, truth, 1.0)


def _hyperbolic(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`1 / (r_i + 1) + 1 / (r_j + 1)` for ranks r from 0 by falling `first`, ties by falling `second`."""
    order = np.lexsort((second, first), axis=-1)[..., ::-1]
    place = np.empty(order.shape)
    np.put_along_axis(place, order, np.broadcast_to(np.arange(order.shape[-1], dtype=float), order.shape), -1)
    weight = 1 / (place + 1)
    return weight[..., :, None] + weight[..., None, :]


def weighted_tau_by_score(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Vigna's weighted tau, hyperbolic weights by rank of the score: `scipy.stats.weightedtau(scores, truth, rank=None)`."""
    return _tau(scores, truth, _hyperbolic(scores, truth))


def weighted_tau_by_truth(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The same by rank of the truth: `scipy.stats.weightedtau(truth, scores, rank=None)`."""
    return _tau(scores, truth, _hyperbolic(truth, scores))


def weighted_tau(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The mean of both, SciPy's default (`rank=True`) and what most papers print. The conventions may differ in sign: say which."""
    return (weighted_tau_by_score(scores, truth) + weighted_tau_by_truth(scores, truth)) / 2


def _best_of_top(scores: np.ndarray, truth: np.ndarray, k: int) -> np.ndarray:
    """Expected best truth among the k models of highest score; of models that tie at the margin each choice is as likely."""
    size = scores.shape[-1]
    k = min(k, size)
    margin = np.sort(scores, axis=-1)[..., size - k, None]
    sure, tied = scores > margin, scores == margin
    places = k - sure.sum(-1)
    floor = np.where(sure, truth, -np.inf).max(-1)
    number = tied.sum(-1)
    order = np.argsort(-truth, axis=-1, kind="stable")
    ahead_tied = np.take_along_axis(tied, order, -1)
    values = np.take_along_axis(truth, order, -1)
    # Going down from the best: a tied model is among the chosen, if no better one is, with chance places / (how many are left).
    expected, left = np.zeros(scores.shape[:-1]), np.ones(scores.shape[:-1])
    seen = np.zeros(scores.shape[:-1])
    for column in range(size):
        here = ahead_tied[..., column] & (values[..., column] > floor)
        chance = np.where(here & (number > seen), places / np.maximum(number - seen, 1), 0.0).clip(0, 1)
        expected = expected + left * chance * np.where(here, values[..., column], 0.0)
        left = left * (1 - chance)
        seen = seen + ahead_tied[..., column]
    return expected + np.where(left > 0, left * np.where(np.isfinite(floor), floor, 0.0), 0.0)


def regret(k: int = 1) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Truth of the best model less that of the best among the k of highest score; 0 is perfect. In the unit of the truth."""
    return lambda scores, truth: truth.max(-1) - _best_of_top(scores, truth, k)


def relative_accuracy(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Truth of the chosen model as a share of the best model's."""
    best = truth.max(-1)
    return np.where(best > 0, _best_of_top(scores, truth, 1) / np.where(best > 0, best, 1.0), np.nan)


STATISTICS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
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
