"""What a race among encoders found."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tta_jax._internal.serialization import load_as, save, storable
from tta_jax._internal.text import finite, printable
from tta_jax.data.extraction.extract import extract_features
from tta_jax.probes import fit_probes
from tta_jax.selection.classifier import EncoderClassifier, made_classifier
from tta_jax.selection.race import FLOOR
from tta_jax.tasks.task import Task


@storable
@dataclasses.dataclass(frozen=True, eq=False)
class JudgedRound:
    """A classifier of one encoder, judged on items that came later.

    Attributes:
      learned, judged: numbers of items.
      score: `1 - loss / H(p_T)`, of probabilities with the floor, and its interval.
      accuracy: and its interval.
      loss_error, accuracy_error: standard errors, of the loss in nats.
    """

    learned: int
    judged: int
    score: float
    score_interval: tuple[float, float]
    accuracy: float
    accuracy_interval: tuple[float, float]
    loss_error: float
    accuracy_error: float


@storable
@dataclasses.dataclass(frozen=True, eq=False)
class CandidateResult:
    """What is known of one encoder.

    Attributes:
      name: of the encoder.
      items: that were encoded.
      seconds: that it took.
      cost: seconds an item.
      difference: how much worse it is than the best, in the measure's unit; 0 for the
        best.
      interval: of the difference; each end holds at all times.
      compared: items that both were judged on.
      why: why it left the race, or "best", or "not told apart".
      left: items seen when it left; None where it stayed.
      rounds: its classifiers in order.
    """

    name: str
    items: int
    seconds: float
    cost: float
    difference: float
    interval: tuple[float, float]
    compared: int
    why: str
    left: int | None
    rounds: tuple[JudgedRound, ...]


@storable
@dataclasses.dataclass(frozen=True, eq=False)
class Continued:
    """The best one's learning curve, continued.

    Attributes:
      learned: items learned from.
      score, accuracy: what it comes to, middle and interval.
    """

    learned: int
    score: tuple[float, float, float]
    accuracy: tuple[float, float, float]


@storable
@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """Which of several encoders to take. Build it with `choose`.

    Attributes:
      best: the encoder to take.
      equivalent: those that cannot be told from the best at the given confidence, the
        best among them.
      candidates: all, the best first.
      stop: why the race ended.
      data: name of the data.
      class_names: of the K classes.
      total: labelled items that there are.
      seen: that were looked at.
      prior_entropy: `H(p_T)`, nats: the loss of guessing.
      measure, margin, confidence, until: as they were asked for.
      seconds: that the race took.
      curve: the best one's score and accuracy with more labels; empty where too little
        is known.
      skipped: items that could not be encoded, and why.
      classifier: the best encoder with a head that learned from all items seen.
    """

    best: str
    equivalent: tuple[str, ...]
    candidates: tuple[CandidateResult, ...]
    stop: str
    data: str
    class_names: tuple[str, ...]
    total: int
    seen: int
    prior_entropy: float
    measure: str
    margin: float
    confidence: float
    until: str
    seconds: float
    curve: tuple[Continued, ...]
    skipped: tuple[tuple[str, str], ...]
    classifier: EncoderClassifier | None

    def check_stored(self) -> None:
        """Check what a file holds beyond the types of its fields.

        Raises:
          ValueError: the best one or an equivalent one is no candidate.
        """
        names = [one.name for one in self.candidates]
        if self.best not in self.equivalent or not set(self.equivalent) <= set(names):
            raise ValueError("it names encoders that were not in the race")

    def table(self) -> list[dict[str, Any]]:
        """A row for each encoder, the best first: items encoded, score and accuracy of
        its last classifier with intervals, how much worse it is than the best, what it
        cost and why it left.
        """
        rows = []
        for one in self.candidates:
            last = one.rounds[-1] if one.rounds else None
            nothing = (float("nan"), float("nan"))
            score = nothing if last is None else last.score_interval
            accuracy = nothing if last is None else last.accuracy_interval
            rows.append(
                {
                    "encoder": one.name,
                    "items": one.items,
                    "learned": 0 if last is None else last.learned,
                    "score": nothing[0] if last is None else last.score,
                    "score_low": score[0],
                    "score_high": score[1],
                    "accuracy": nothing[0] if last is None else last.accuracy,
                    "accuracy_low": accuracy[0],
                    "accuracy_high": accuracy[1],
                    "worse": one.difference,
                    "worse_low": one.interval[0],
                    "worse_high": one.interval[1],
                    "seconds": one.seconds,
                    "why": one.why,
                }
            )
        return rows

    def summary(self) -> str:
        """What was found, in a few sentences."""
        chosen = self.candidates[0]
        last = chosen.rounds[-1]
        others = [name for name in self.equivalent if name != self.best]
        low, high = last.accuracy_interval
        lines = [
            f"Take {self.best}: a linear classifier on it that learned from "
            f"{last.learned} items of {self.data!r} is right for {last.accuracy:.1%} "
            f"of {last.judged} others ({low:.1%} to {high:.1%})."
        ]
        if others:
            named = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
            lines.append(
                f"On {self.seen} items there is not enough data to tell it from "
                f"{named}."
            )
        elif len(self.candidates) > 1:
            lines.append(
                f"The {_others(len(self.candidates) - 1)} worse, at a confidence of "
                f"{self.confidence:.0%}."
            )
        if self.curve:
            more = self.curve[0]
            _, low, high = more.accuracy
            lines.append(
                f"With {more.learned} labels {low:.1%} to {high:.1%} would be right, "
                "if its learning curve goes on as it has."
            )
        else:
            lines.append("What more labels would change cannot be said yet.")
        lines.append(
            f"The race ended after {self.seen} of {self.total} items: {self.stop}."
        )
        return "\n".join(printable(line) for line in lines)

    def fit(self, data: Any = None, **options: Any) -> EncoderClassifier:
        """The best encoder with a head, as one callable on raw items.

        Args:
          data: labelled data to learn from, as `extract_features` takes it, or a
            `Task` of the encoder's features; the items seen in the race when None.
          options: of `extract_features`.

        Raises:
          ValueError: as `extract_features`; the encoder is not at hand; or the classes
            are others.
        """
        kept = self.classifier
        if kept is None:
            raise ValueError(
                f"choice: it has no classifier of {self.best!r}; run choose again"
            )
        if data is None:
            return kept
        if isinstance(data, Task):
            task = data
        else:
            task = extract_features(kept.loaded(), data, **options).task()
        names = tuple(str(name) for name in task.class_names)
        if names != self.class_names:
            raise ValueError(
                f"data: it has classes {', '.join(names[:5])}; the choice was made for "
                f"{', '.join(self.class_names[:5])}"
            )
        (probe,) = fit_probes([task], key=jax.random.key(0))
        return made_classifier(
            encoder=getattr(kept, "_given", None),
            reference=kept.encoder,
            options=kept.options,
            probe=probe,
            class_names=names,
            learned=int(np.asarray(task.labelled).sum()),
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the classifier as plain values; NaN becomes None."""
        fields = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name != "classifier"
        }

        def plain(value: Any) -> Any:
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                return {
                    f.name: plain(getattr(value, f.name))
                    for f in dataclasses.fields(value)
                }
            if isinstance(value, (tuple, list)):
                return [plain(one) for one in value]
            return value

        return finite(
            {name: plain(value) for name, value in fields.items()}
            | {"floor": FLOOR, "summary": self.summary()}
        )

    def save(self, path: str | os.PathLike) -> None:
        """Write to one file, atomically.

        Args:
          path: ending in .tta.
        """
        save(path, self)

    @staticmethod
    def load(path: str | os.PathLike) -> Choice:
        """Read what `save` wrote.

        Args:
          path: of the file.

        Raises:
          ValueError: it is no such file.
        """
        return load_as(path, Choice, "a choice")


def load_classifier(path: str | os.PathLike) -> EncoderClassifier:
    """The classifier in what `Choice.save` or `EncoderClassifier.save` wrote.

    Args:
      path: of the file, or of the folder that `choose` wrote.

    Raises:
      ValueError: there is none.
    """
    place = Path(path)
    if place.is_dir():
        place /= "choice.tta"
        if not place.is_file():
            raise ValueError(
                f"path: {str(path)!r} holds no choice.tta; name what tta-jax choose "
                "wrote with --out"
            )
    found = load_as(place, (Choice, EncoderClassifier), "a choice")
    return found.fit() if isinstance(found, Choice) else found


def _others(count: int) -> str:
    return "other one is" if count == 1 else f"other {count} are"
