"""Race encoders on growing parts of labelled data, and take the best."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tta_jax._internal.numbers import real_number
from tta_jax._internal.typing import Array
from tta_jax.data.examples import Examples, as_examples
from tta_jax.data.loading import open_data
from tta_jax.probes import LinearProbe, fit_probes
from tta_jax.selection.candidates import (
    INSTALLED,
    Candidate,
    checked_costs,
    encoded_candidates,
    item_hashes,
    ready_candidates,
)
from tta_jax.selection.choice import (
    CandidateResult,
    Choice,
    Continued,
    JudgedRound,
)
from tta_jax.selection.classifier import made_classifier
from tta_jax.selection.learning_curve import extrapolate
from tta_jax.selection.race import (
    MARGINS,
    MEASURES,
    SAME,
    Comparison,
    Figures,
    Judgements,
    reason,
    stand,
)
from tta_jax.selection.schedule import Budget, Order, first_round, learning_sizes
from tta_jax.tasks.splits import Seed, seed_from_key
from tta_jax.tasks.task import Task

UNTIL = ("enough", "sure")
# The race ends where what it may still gain is below this share of the margin.
_WORTH = 0.25
_LEAST_ITEMS = 16
_LEAST_ROUND = 20  # new items that are worth a round


class RaceProgress(NamedTuple):
    """Where a race stands.

    Attributes:
      phase: what is being done.
      share: of it that is done.
      seen, total: items.
      rows: one for each encoder, the leader first: `encoder`, `items`, `seconds`,
        `why`, and once it was judged `score`, `accuracy`, `worse`.
    """

    phase: str
    share: float
    seen: int
    total: int
    rows: list[dict[str, Any]]


def choose(
    data: Any = None,
    encoders: Any = None,
    *,
    features: Mapping[str, Any] | None = None,
    budget: str | None = None,
    confidence: float = 0.95,
    measure: str = "loss",
    margin: float | None = None,
    until: str = "enough",
    costs: Mapping[str, float] | None = None,
    device: str | None = None,
    precision: str = "float32",
    trust_remote_code: bool = False,
    batch_size: int | None = None,
    on_error: str = "raise",
    cache: bool | str | os.PathLike = True,
    key: Array | Seed | None = None,
    progress: Callable[[RaceProgress], None] | None = None,
) -> Choice:
    """Choose the encoder on which a linear classifier does best, and say how sure that
    is, without encoding all data with all of them.

    Rounds look at 200 items, then twice as many each time. A round's new items are
    predicted by classifiers that learned from the items before, then learned from.
    An encoder leaves when it is not better than the leader by more than the margin, at
    a confidence that holds however often one looks (docs/theory.md, section 6.3).

    Args:
      data: labelled pictures, texts or arrays, as `extract_features` takes them.
      encoders: names, or `Encoder`s, modules and functions; a mapping of names to
        them; or "installed", all ready-made ones for the data.
      features: ready features in place of both: names to `Features` or `Task`s of the
        same items in the same order.
      budget: a time, such as "10min", or a number of encoded items, such as
        "5000items"; the first round is looked at in any case where it is a time.
      confidence: with which the best encoder is never said to be worse.
      measure: what is compared: "loss" (in shares of guessing's) or "accuracy" (above
        chance).
      margin: a difference that does not matter, in that unit; 0.02 of loss or 0.01 of
        accuracy when None.
      until: "enough" ends the race where a wrong choice is expected to cost less than
        a quarter of the margin, and lets those go that hardly add to that; "sure" goes
        on until all others are worse, or equal within the margin.
      costs: seconds an item, for ready features or where they are known.
      device, precision, trust_remote_code: as for `load_encoder`.
      batch_size, on_error, cache: as for `extract_features`. What was encoded is kept
        in the cache: an interrupted race goes on where it was.
      key: decides the order of the items; `jax.random.key(0)` when None.
      progress: called with a `RaceProgress`.

    Raises:
      ValueError: names the argument, what was found and what to do.
    """
    race_settings = _Settings.checked(confidence, measure, margin, until, budget)
    load = {
        "device": device,
        "precision": precision,
        "trust_remote_code": trust_remote_code,
    }
    options = {"batch_size": batch_size, "on_error": on_error, "cache": cache}
    if features is not None:
        if encoders is not None or data is not None:
            raise ValueError(
                "features: found them and data or encoders; give ready features, or "
                "data and encoders"
            )
        if not isinstance(features, Mapping) or not features:
            raise ValueError("features: give a mapping of names to features")
        given = checked_costs(costs, list(features))
        candidates, task = ready_candidates(features, given)
        labelled = _Labelled.of(task, task.class_names, None)
    else:
        if data is None or encoders is None:
            raise ValueError(
                "data: give labelled data and encoders, or ready features (features=)"
            )
        examples = as_examples(
            open_data(data) if isinstance(data, (str, os.PathLike)) else data
        )
        candidates = encoded_candidates(encoders, examples, costs or {}, load, options)
        checked_costs(costs, [one.name for one in candidates])
        if examples.labels is None or examples.class_names is None:
            raise ValueError(
                f"data: {examples.name!r} has no labels; a choice is made by what "
                "classifiers get right, so label some items first"
            )
        if not candidates:
            raise ValueError(
                f"encoders: found none; give at least one, or {INSTALLED!r}"
            )
        labelled = _Labelled.of(examples, examples.class_names, examples)
    return _Race(
        candidates=candidates,
        labelled=labelled,
        settings=race_settings,
        seed=seed_from_key(jax.random.key(0) if key is None else key),
        load={k: v for k, v in load.items() if v not in (None, False, "float32")},
        progress=progress,
    ).run()


class _Labelled(NamedTuple):
    """The labelled items of the data.

    Attributes:
      name: of the data.
      places: `(n,)` of the items in the data.
      labels: `(n,)`.
      groups: `(n,)` or None.
      class_names: of the K classes.
      examples: raw items; None where features are ready.
    """

    name: str
    places: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None
    class_names: tuple[str, ...]
    examples: Examples | None

    @classmethod
    def of(
        cls,
        data: Task | Examples,
        class_names: Sequence[Any],
        examples: Examples | None,
    ) -> _Labelled:
        labels = np.asarray(data.labels)
        known = data.labelled
        places = np.arange(len(labels))
        if known is not None:
            places = places[np.asarray(known)]
        labels = labels[places]
        classes = len(np.unique(labels))
        if classes < 2:
            raise ValueError(
                f"data: the items of {data.name!r} that have a label are of {classes} "
                "class; a classifier needs at least 2"
            )
        if len(labels) < _LEAST_ITEMS:
            raise ValueError(
                f"data: {data.name!r} has {len(labels)} labelled items; at least "
                f"{_LEAST_ITEMS} are needed to learn from some and judge by others"
            )
        return cls(
            name=data.name,
            places=places,
            labels=labels,
            groups=None if data.groups is None else np.asarray(data.groups)[places],
            class_names=tuple(str(one) for one in class_names),
            examples=examples,
        )


class _Settings(NamedTuple):
    confidence: float
    measure: str
    margin: float
    until: str
    budget: Budget

    @classmethod
    def checked(
        cls,
        confidence: float,
        measure: str,
        margin: float | None,
        until: str,
        budget: str | None,
    ) -> _Settings:
        if not 0 < real_number(confidence) < 1:
            raise ValueError(
                f"confidence: found {confidence!r}; give a number between 0 and 1"
            )
        if measure not in MEASURES:
            raise ValueError(
                f"measure: found {measure!r}; choose one of {', '.join(MEASURES)}"
            )
        if until not in UNTIL:
            raise ValueError(
                f"until: found {until!r}; choose one of {', '.join(UNTIL)}"
            )
        if margin is not None and not 0 < real_number(margin) < 1:
            raise ValueError(
                f"margin: found {margin!r}; give a number between 0 and 1, or None"
            )
        return cls(
            float(confidence),
            measure,
            MARGINS[measure] if margin is None else float(margin),
            until,
            Budget.parse(budget),
        )


class _Race:
    """A race while it goes.

    Items are numbered in the order of the race; `self._order.items` says where they are
    among the labelled ones, `places` where those are in the data.
    """

    def __init__(
        self,
        *,
        candidates: Sequence[Candidate],
        labelled: _Labelled,
        settings: _Settings,
        seed: Seed,
        load: dict[str, Any],
        progress: Callable[[RaceProgress], None] | None,
    ):
        self._begin = time.perf_counter()
        self._candidates = {one.name: one for one in candidates}
        groups = labelled.groups
        self._order = Order.stratified(labelled.labels, groups, seed)
        self._places = labelled.places[self._order.items]
        self._labels = labelled.labels[self._order.items]
        total = len(self._labels)
        self._groups = None if groups is None else groups[self._order.items]
        grouped = np.arange(total) if self._groups is None else self._groups
        self._names, self._examples = labelled.class_names, labelled.examples
        self._data = labelled.name
        self._judged = Judgements(self._labels, grouped, len(self._names))
        self._settings, self._seed, self._load = settings, seed, load
        self._tell = progress
        self._rows: dict[str, np.ndarray] = {}
        self._usable = np.ones(total, bool)  # encoded by all that were asked
        self._first = np.ones(total, bool)  # no copy of an item before
        self._known: set[bytes] = set()
        self._skipped: dict[int, str] = {}
        self._active = [one.name for one in candidates]
        self._left: dict[str, int] = {}
        self._unlikely: dict[str, float] = {}  # left, but not told apart: their regret
        self._standing: dict[str, dict[str, Any]] = {}
        self._seen = 0

    def run(self) -> Choice:
        """Rounds until there is a reason to stop."""
        stop = ""
        while not stop:
            now = self._next()
            if now <= self._seen:
                stop = "the budget is used up"
                break
            self._round(now)
            stop = self._decide()
        self._report("fit", 0.0)
        return self._choice(stop)

    def _next(self) -> int:
        """How many items are looked at after the next round."""
        total, seen = len(self._labels), self._seen
        number = 2 * seen if seen else first_round(total, len(self._names))
        budget, active = self._settings.budget, len(self._active)
        used = sum(one.items for one in self._candidates.values())
        most = (budget.items - used) / active
        cost = sum(self._candidates[name].cost for name in self._active)
        if cost > 0 and seen:
            spent = time.perf_counter() - self._begin
            most = min(most, (budget.seconds - spent) / cost)
        if not seen and most < min(total, _LEAST_ITEMS):
            raise ValueError(
                f"budget: {budget.items:.0f} items are too few for {active} encoders; "
                f"give at least {_LEAST_ITEMS * active}items"
            )
        number = min(number, total)
        if number - seen > most:
            number = seen + int(most)
            if seen and number - seen < _LEAST_ROUND:
                return seen
        cut = self._order.cut(number)
        # A few items that are left over make no round of their own.
        return total if total - cut < _LEAST_ROUND and most == np.inf else cut

    def _round(self, now: int) -> None:
        """Encode the items up to `now`, judge them, and learn from them."""
        seen, new = self._seen, self._places[self._seen : now]
        ordered = sorted(
            self._active, key=lambda name: (self._candidates[name].cost, name)
        )
        for place, name in enumerate(ordered):

            def tell(what: str, share: float, place: int = place, name: str = name):
                self._report(f"{name}: {what}", (place + share) / len(ordered))

            tell("begins", 0.0)
            rows, skipped = self._candidates[name].features(new, tell)
            for item, why in skipped.items():
                self._usable[seen + item] = False
                self._skipped.setdefault(seen + item, why)
            before = self._rows.get(name)
            self._rows[name] = (
                rows if before is None else np.concatenate([before, rows])
            )
        latest = [self._rows[name][seen:now] for name in self._active]
        for item, found in enumerate(item_hashes(self._examples, latest, new)):
            self._first[seen + item] = found not in self._known
            self._known.add(found)
        for learned, until in learning_sizes(self._order, seen, now):
            self._report(f"learn from {learned} items", 1.0)
            self._judge(learned, until)
        self._seen = now

    def _judge(self, learned: int, until: int) -> None:
        """Fit all classifiers on the first items, and judge them on the next ones."""
        counts = (self._usable & self._first)[learned:until]
        for name, probe in zip(
            self._active, self._fitted(self._active, learned), strict=True
        ):
            rows = self._rows[name][learned:until]
            log_p = np.zeros((len(rows), len(self._names)))
            usable = self._usable[learned:until]
            log_p[usable] = probe.log_probabilities(rows[usable])
            self._judged.add(name, learned, learned, log_p, counts)

    def _fitted(self, names: Sequence[str], learned: int) -> list[LinearProbe]:
        """Probes of encoders that learned from the first items."""
        usable = np.flatnonzero(self._usable[:learned])
        groups = None if self._groups is None else self._groups[usable]
        tasks = [
            Task(
                features=self._rows[name][usable],
                labels=self._labels[usable].astype(np.int32),
                labelled=np.ones(len(usable), bool),
                class_names=self._names,
                name=self._data,
                groups=groups,
                encoder=name,
            )
            for name in names
        ]
        return fit_probes(tasks, key=self._seed)

    @property
    def _delta(self) -> float:
        others = max(len(self._candidates) - 1, 1)
        return (1 - self._settings.confidence) / others

    def _decide(self) -> str:
        """Let those go that have to, and say why the race ends; "" where it goes on."""
        settings = self._settings
        now = stand(
            self._judged,
            self._active,
            measure=settings.measure,
            margin=settings.margin,
            delta=self._delta,
            sure=settings.until == "sure",
        )
        worth = _WORTH * settings.margin
        regret = now.regret
        if settings.until == "enough":
            share = worth / max(len(self._candidates) - 1, 1)
            self._unlikely |= {n: v for n, v in regret.items() if v < share}
        for name in (*now.out, *(n for n in regret if n in self._unlikely)):
            self._left[name] = self._seen
            self._active.remove(name)
        if self._tell is not None:
            self._update_standing()
            self._report("compared", 1.0)
        if len(self._active) == 1 and len(self._candidates) > 1 and not self._unlikely:
            return "one encoder is left"
        if self._seen == len(self._labels):
            return "all items were looked at"
        left = sum(v for n, v in regret.items() if n not in self._unlikely)
        if settings.until == "enough" and left + sum(self._unlikely.values()) < worth:
            if len(self._candidates) == 1:
                return "there is one encoder"
            return (
                "a wrong choice is expected to cost less than a quarter of the margin "
                f"of {settings.margin:g}"
            )
        return ""

    def _compared(self, best: str) -> dict[str, Comparison]:
        return {
            name: self._judged.compare(name, best, self._settings.measure, self._delta)
            for name in self._candidates
            if name != best
        }

    def _best(self) -> tuple[str, dict[str, Comparison]]:
        """The leader; where others are as good within the margin, the cheapest."""
        measure = self._settings.measure
        best = min(self._active, key=lambda name: self._judged.mean(name, measure))
        against = self._compared(best)
        equal = [
            n for n, found in against.items() if found.high < self._settings.margin
        ]
        cheapest = min([best, *equal], key=lambda name: self._candidates[name].cost)
        if self._candidates[cheapest].cost < self._candidates[best].cost:
            return cheapest, self._compared(cheapest)
        return best, against

    def _report(self, phase: str, share: float) -> None:
        if self._tell is None:
            return
        rows = [
            self._standing.get(name, {"encoder": name})
            | {
                "items": self._candidates[name].items,
                "seconds": self._candidates[name].seconds,
                "why": "left" if name in self._left else "in the race",
            }
            for name in [
                *self._standing,
                *(name for name in self._candidates if name not in self._standing),
            ]
        ]
        self._tell(RaceProgress(phase, share, self._seen, len(self._labels), rows))

    def _update_standing(self) -> None:
        """Take down where everyone stands, for those who watch."""
        measure = self._settings.measure

        def place(name: str) -> tuple[bool, float]:
            return name in self._left, self._judged.mean(name, measure)

        names = sorted(self._judged.rounds, key=place)
        for name in names:
            self._standing.pop(name, None)
            figures = self._judged.figures(name, self._settings.confidence)
            if not figures:
                continue
            last = figures[-1]
            found = self._judged.compare(name, names[0], measure, self._delta)
            self._standing[name] = {
                "encoder": name,
                "score": 1 - last.loss / self._judged.prior_entropy,
                "accuracy": last.accuracy,
                "worse": found.mean,
            }

    def _choice(self, stop: str) -> Choice:
        settings, judged = self._settings, self._judged
        best, against = self._best()
        figures = {
            name: judged.figures(name, settings.confidence) for name in self._candidates
        }
        if not figures[best]:
            raise ValueError(
                f"data: no item of {self._data!r} can be judged: a group or exact "
                "copies hold them together, or none could be encoded; give more items"
            )
        results = []
        for name, one in self._candidates.items():
            found = against.get(name, SAME)
            results.append(
                CandidateResult(
                    name=name,
                    items=one.items,
                    seconds=one.seconds,
                    cost=one.cost,
                    difference=found.mean,
                    interval=(found.low, found.high),
                    compared=found.items,
                    why="best" if name == best else self._why(name, found),
                    left=self._left.get(name),
                    rounds=self._rounds(figures[name]),
                )
            )
        results.sort(key=lambda one: (one.name != best, one.difference))
        candidate = self._candidates[best]
        # The best may have left as equal to a dearer one, with fewer items.
        (probe,) = self._fitted([best], len(self._rows[best]))
        described = self._examples.describe if self._examples is not None else str
        return Choice(
            best=best,
            equivalent=tuple(
                one.name for one in results if one.name == best or one.interval[0] <= 0
            ),
            candidates=tuple(results),
            stop=stop,
            data=self._data,
            class_names=self._names,
            total=len(self._labels),
            seen=self._seen,
            prior_entropy=judged.prior_entropy,
            measure=settings.measure,
            margin=settings.margin,
            confidence=settings.confidence,
            until=settings.until,
            seconds=time.perf_counter() - self._begin,
            curve=self._curve(figures[best], len(self._rows[best])),
            skipped=tuple(
                (str(described(int(self._places[item]))), why)
                for item, why in sorted(self._skipped.items())
            ),
            classifier=made_classifier(
                encoder=candidate.encoder,
                reference=candidate.reference,
                options=self._load if candidate.reference else {},
                probe=probe,
                class_names=self._names,
                learned=int(self._usable[: len(self._rows[best])].sum()),
            ),
        )

    def _why(self, name: str, found: Comparison) -> str:
        said = reason(found, self._settings.margin)
        if name in self._unlikely and found.low <= 0:
            return f"unlikely to be better, {said}"
        return said

    def _rounds(self, figures: Sequence[Figures]) -> tuple[JudgedRound, ...]:
        entropy = self._judged.prior_entropy
        return tuple(
            JudgedRound(
                learned=one.learned,
                judged=one.judged,
                score=1 - one.loss / entropy,
                score_interval=(
                    1 - one.loss_high / entropy,
                    1 - one.loss_low / entropy,
                ),
                accuracy=one.accuracy,
                accuracy_interval=(one.accuracy_low, one.accuracy_high),
                loss_error=one.loss_error,
                accuracy_error=one.accuracy_error,
            )
            for one in figures
        )

    def _curve(self, figures: Sequence[Figures], seen: int) -> tuple[Continued, ...]:
        total = len(self._labels)
        wanted = [2 * seen, total if total > 2 * seen else 4 * seen]
        learned = [one.learned for one in figures]
        rng = np.random.default_rng(self._seed)
        # Of items that are all right little is known: one more right, one more wrong.
        judged = np.array([one.judged for one in figures], float)
        shares = np.array([1 - one.accuracy for one in figures])
        shares = (shares * judged + 1) / (judged + 2)
        errors = np.maximum(
            np.sqrt(shares * (1 - shares) / judged),
            [one.accuracy_error for one in figures],
        )
        found = [
            extrapolate(learned, values, doubt, wanted, self._settings.confidence, rng)
            for values, doubt in (
                ([one.loss for one in figures], [one.loss_error for one in figures]),
                (shares, errors),
            )
        ]
        losses, wrong = found
        if losses is None or wrong is None:
            return ()
        scores = 1 - losses / self._judged.prior_entropy
        right = 1 - wrong
        return tuple(
            Continued(
                number,
                (float(scores[i, 0]), float(scores[i, 2]), float(scores[i, 1])),
                (float(right[i, 0]), float(right[i, 2]), float(right[i, 1])),
            )
            for i, number in enumerate(wanted)
        )
