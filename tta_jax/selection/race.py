"""What has been judged so far, and what follows from it (docs/theory.md, section 6.3).

Every item is judged once: by a classifier that learned from items before it. Losses of
two encoders on the same items are compared by sequences that hold at all times at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from tta_jax.bounds.confidence_sequence import (
    expected_regret,
    lower_running_mean,
    upper_running_mean,
)
from tta_jax.bounds.intervals import betting_bound, clopper_pearson

# Share of guessing in the probabilities that are judged: it bounds the loss.
FLOOR = 0.1
MEASURES = ("loss", "accuracy")
MARGINS = {"loss": 0.02, "accuracy": 0.01}


class Comparison(NamedTuple):
    """How much worse one encoder is than another on the items that both were judged
    on; in shares of the loss of guessing, or of the accuracy above chance.

    Attributes:
      mean: over the items.
      low, high: of the mean over what is expected of each item; each of them holds at
        all times, with probability `1 - delta`.
      error: standard error of the mean.
      items: how many.
    """

    mean: float
    low: float
    high: float
    error: float
    items: int


SAME = Comparison(mean=0.0, low=0.0, high=0.0, error=0.0, items=0)  # as itself


class Figures(NamedTuple):
    """Of the items that one classifier was judged on.

    Attributes:
      learned, judged: numbers of items.
      loss: mean, nats, of probabilities with the floor.
      loss_low, loss_high: interval.
      accuracy, accuracy_low, accuracy_high: likewise.
      loss_error, accuracy_error: standard errors.
    """

    learned: int
    judged: int
    loss: float
    loss_low: float
    loss_high: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    loss_error: float
    accuracy_error: float


class Judgements:
    """Losses of several encoders on items in the order of the race.

    Attributes:
      labels: `(n,)`.
      groups: `(n,)` numbers, equal for items that are drawn together; consecutive.
      classes: K.
      prior_entropy: `H(p_T)` of all items, nats.
      rounds: name -> `(learned, start, stop)` of each classifier.
    """

    def __init__(
        self, labels: Int[np.ndarray, " n"], groups: Int[np.ndarray, " n"], classes: int
    ):
        self.labels, self.groups, self.classes = labels, groups, classes
        share = np.bincount(labels, minlength=classes) / len(labels)
        share = share[share > 0]
        self.prior_entropy = float(-(share * np.log(share)).sum())
        self.rounds: dict[str, list[tuple[int, int, int]]] = {}
        self._loss: dict[str, np.ndarray] = {}
        self._wrong: dict[str, np.ndarray] = {}

    @property
    def largest_loss(self) -> float:
        """Nats."""
        return math.log(self.classes / FLOOR)

    def add(
        self,
        name: str,
        learned: int,
        start: int,
        log_p: Float[np.ndarray, "m K"],
        counts: np.ndarray,
    ) -> None:
        """Judge a classifier on the items from `start` on.

        Args:
          name: of the encoder.
          learned: items that it learned from.
          start: the first item that is judged.
          log_p: log probabilities of the items.
          counts: `(m,)` bool, which of them count.
        """
        n, stop = len(self.labels), start + len(log_p)
        labels = self.labels[start:stop]
        own = np.exp(log_p[np.arange(len(labels)), labels])
        for kept, values in (
            (self._loss, -np.log((1 - FLOOR) * own + FLOOR / self.classes)),
            (self._wrong, (log_p.argmax(1) != labels).astype(float)),
        ):
            row = kept.setdefault(name, np.full(n, np.nan))
            row[start:stop] = np.where(counts, values, np.nan)
        self.rounds.setdefault(name, []).append((learned, start, stop))

    def mean(self, name: str, measure: str) -> float:
        """Mean loss or share of errors of an encoder over all that it was judged on;
        inf where that is nothing.

        Args:
          name: of the encoder.
          measure: one of `MEASURES`.
        """
        values = self._values(name, measure)
        there = values[~np.isnan(values)]
        return float(there.mean()) if len(there) else math.inf

    def compare(self, name: str, other: str, measure: str, delta: float) -> Comparison:
        """Compare an encoder with another one on the items that both were judged on.

        Args:
          name: the one that may be worse.
          other: the one that it is compared with.
          measure: one of `MEASURES`.
          delta: probability with which either end may ever be wrong.
        """
        excess = self._values(name, measure) - self._values(other, measure)
        sums, sizes = self._by_group(excess)
        bound = self.scale(measure) * (
            1.0
            if measure == "accuracy"
            else self.largest_loss + math.log1p(-FLOOR + FLOOR / self.classes)
        )
        if not len(sums):
            return Comparison(mean=0.0, low=-bound, high=bound, error=bound, items=0)
        mean, error = _mean_and_error(sums, sizes)
        return Comparison(
            mean=mean,
            low=lower_running_mean(sums, bound, delta, sizes),
            high=upper_running_mean(sums, bound, delta, sizes),
            error=error,
            items=int(sizes.sum()),
        )

    def figures(self, name: str, level: float) -> list[Figures]:
        """Figures of each classifier of an encoder, in the order of the race.

        Args:
          name: of the encoder.
          level: of the intervals, which hold for one classifier each.
        """
        found = []
        for learned, start, stop in self.rounds.get(name, ()):
            part = slice(start, stop)
            parts = [
                self._by_group(row[name][part], part)
                for row in (self._loss, self._wrong)
            ]
            (losses, sizes), (wrong, _) = parts
            if not len(sizes):
                continue
            loss, error = _mean_and_error(losses, sizes)
            low, high = _interval(losses, sizes, self.largest_loss, level)
            share, share_error = _mean_and_error(wrong, sizes)
            if (sizes == 1).all():
                right = clopper_pearson(1 - wrong, np.ones(len(wrong)), level)
            else:
                ends = _interval(wrong, sizes, 1.0, level)
                right = (1 - ends[1], 1 - ends[0])
            found.append(
                Figures(
                    learned=learned,
                    judged=int(sizes.sum()),
                    loss=loss,
                    loss_low=low,
                    loss_high=high,
                    accuracy=1 - share,
                    accuracy_low=right[0],
                    accuracy_high=right[1],
                    loss_error=error,
                    accuracy_error=share_error,
                )
            )
        return found

    def scale(self, measure: str) -> float:
        """What differences are multiplied by: shares of guessing's loss, or of the
        accuracy above chance.
        """
        if measure == "loss":
            return 1 / max(self.prior_entropy, 1e-12)
        return 1 / (1 - 1 / self.classes)

    def _values(self, name: str, measure: str) -> np.ndarray:
        kept = self._loss if measure == "loss" else self._wrong
        if name not in kept:
            return np.full(len(self.labels), np.nan)
        return kept[name] * self.scale(measure)

    def _by_group(
        self, values: np.ndarray, part: slice = slice(None)
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sums and numbers of the values that are no NaN, group by group."""
        there = ~np.isnan(values)
        groups = self.groups[part][there]
        if not len(groups):
            return np.zeros(0), np.zeros(0)
        place = np.cumsum(np.r_[0, np.diff(groups) != 0])
        return np.bincount(place, values[there]), np.bincount(place).astype(float)


def _mean_and_error(sums: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Mean per item and its standard error, with one more group as far off as the
    farthest one.
    """
    mean = float(sums.sum() / sizes.sum())
    off = sums - mean * sizes
    return mean, math.sqrt(float(off @ off + np.max(off**2))) / float(sizes.sum())


def _interval(
    sums: np.ndarray, sizes: np.ndarray, largest: float, level: float
) -> tuple[float, float]:
    """Interval of a mean per item of values between 0 and `largest`."""
    each, delta = largest * float(sizes.max()), (1 - level) / 2
    values = np.clip(sums / each, 0, 1)
    scale = each * len(sums) / float(sizes.sum())
    high = scale * betting_bound(values, delta)
    low = scale * (1 - betting_bound(1 - values, delta))
    return max(low, 0.0), min(high, largest)


class Standing(NamedTuple):
    """Where the race stands.

    Attributes:
      leader: of least mean loss.
      against: name -> how much worse than the leader, for all others.
      out: which of the others leave now.
      regret: name -> what not taking it is expected to lose, for those that stay.
    """

    leader: str
    against: dict[str, Comparison]
    out: list[str]
    regret: dict[str, float]


def stand(
    judged: Judgements,
    active: Sequence[str],
    *,
    measure: str,
    margin: float,
    delta: float,
    sure: bool,
) -> Standing:
    """See who leads, and who leaves: whoever is not better than the leader by more than
    the margin, at the level of the sequence.

    Args:
      judged: losses so far.
      active: names of those in the race.
      measure: one of `MEASURES`.
      margin: differences that do not matter, in the measure's unit.
      delta: probability with which each end may ever be wrong.
      sure: whether those stay who may still turn out to be worse by the margin; then
        whoever leaves is worse, or equal within the margin.
    """
    leader = min(active, key=lambda name: judged.mean(name, measure))
    against = {
        name: judged.compare(name, leader, measure, delta)
        for name in active
        if name != leader
    }
    out = [
        name
        for name, found in against.items()
        if -found.low < margin and (not sure or found.low > 0 or found.high < margin)
    ]
    regret = {
        name: expected_regret(found.mean, found.error)
        for name, found in against.items()
        if name not in out
    }
    return Standing(leader, against, out, regret)


def reason(found: Comparison, margin: float) -> str:
    """Say what a comparison with the leader shows.

    Args:
      found: the comparison.
      margin: differences that do not matter.
    """
    if found.low > 0:
        return f"worse by at least {found.low:.3f}"
    if found.high < margin and -found.low < margin:
        return f"equal within {margin:g}"
    if -found.low < margin:
        return f"not better by {margin:g}"
    return "not told apart"
