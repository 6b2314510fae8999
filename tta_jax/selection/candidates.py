"""Encoders that race: features of some items, and what they cost."""

from __future__ import annotations

import abc
import dataclasses
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tta_jax._internal.numbers import real_number
from tta_jax.data.cache import remembered
from tta_jax.data.encoders import ENCODERS, load_encoder
from tta_jax.data.encoders.base import Encoder
from tta_jax.data.examples import Examples, digest
from tta_jax.data.extraction.adapters import as_encoder, check_modality
from tta_jax.data.extraction.extract import extract_features
from tta_jax.data.io.features import Features
from tta_jax.selection.classifier import identity_hash
from tta_jax.tasks.splits import joined_groups, row_hashes
from tta_jax.tasks.task import Task

_SETTING = re.compile(r"\w+=")
INSTALLED = "installed"  # all ready-made encoders that are there


class Candidate(abc.ABC):
    """An encoder in the race.

    Attributes:
      name: of the encoder.
      reference: what loads it again; "" where nothing does.
      encoder: None for ready features.
      seconds, items: spent on features so far.
      cost: seconds an item; 0 before the first one where they are not given.
      given: seconds an item, where the caller knows them; None else.
    """

    def __init__(
        self,
        name: str,
        encoder: Encoder | None,
        reference: str = "",
        given: float | None = None,
    ):
        self.name, self.encoder, self.reference = name, encoder, reference
        self.seconds, self.items, self.given = 0.0, 0, given
        self.cost = 0.0 if given is None else given

    def features(
        self, places: np.ndarray, tell: Callable[[str, float], None] | None
    ) -> tuple[np.ndarray, dict[int, str]]:
        """Features `(m, d)` of items, NaN for those that cannot be had, and why.

        Args:
          places: `(m,)` of the items in the data.
          tell: called with what is being done and the share done.
        """
        begin = time.perf_counter()
        found = self._features(places, tell)
        self.items += len(places)
        spent = time.perf_counter() - begin
        self.seconds += spent if self.given is None else self.given * len(places)
        if self.given is None:
            self.cost = self._measured(self.seconds / self.items)
        return found

    def _measured(self, cost: float) -> float:
        """Seconds an item, given those of this race."""
        return cost

    @abc.abstractmethod
    def _features(
        self, places: np.ndarray, tell: Callable[[str, float], None] | None
    ) -> tuple[np.ndarray, dict[int, str]]:
        """As `features`, which takes the time."""


class ReadyCandidate(Candidate):
    """Features that are there."""

    def __init__(self, name: str, task: Task, seconds: float):
        super().__init__(name, None, given=seconds)
        self._rows = np.asarray(task.features)

    def _features(
        self, places: np.ndarray, tell: Callable[[str, float], None] | None
    ) -> tuple[np.ndarray, dict[int, str]]:
        return self._rows[places], {}


class EncodedCandidate(Candidate):
    """Features that are made of raw items."""

    def __init__(
        self,
        name: str,
        encoder: Encoder,
        reference: str,
        examples: Examples,
        given: float | None,
        options: Mapping[str, Any],
    ):
        super().__init__(name, encoder, reference, given)
        # Subsets need not have all classes.
        self._examples = dataclasses.replace(
            examples, labels=None, class_names=None, labelled=None, groups=None
        )
        self._options = options

    def _measured(self, cost: float) -> float:
        # What is read from the cache took longer when it was made.
        identity = identity_hash(self.encoder)
        if not self._options["cache"] or not identity:
            return cost
        key = ["seconds an item", identity]
        return float(remembered(key, lambda: cost, lambda kept: kept >= cost))

    def _features(
        self, places: np.ndarray, tell: Callable[[str, float], None] | None
    ) -> tuple[np.ndarray, dict[int, str]]:
        found = extract_features(
            self.encoder, self._examples.take(places), progress=tell, **self._options
        )
        skipped = {
            row["item"]: str(row["reason"]) for row in found.provenance["skipped"]
        }
        rows = np.asarray(found.features)
        if not skipped:
            return rows, {}
        whole = np.full((len(places), rows.shape[1]), np.nan, rows.dtype)
        whole[[i for i in range(len(places)) if i not in skipped]] = rows
        return whole, skipped


def ready_candidates(
    given: Mapping[str, Any], costs: Mapping[str, float]
) -> tuple[list[Candidate], Task]:
    """Candidates of ready features, and a task with their labels and groups.

    Args:
      given: names to `Features` or `Task`s of the same items in the same order.
      costs: seconds an item.

    Raises:
      ValueError: they are not of the same items; names both.
    """
    tasks: dict[str, Task] = {}
    for name, one in given.items():
        if not isinstance(one, (Task, Features)):
            raise ValueError(
                f"features: found {type(one).__name__} for {name!r}; give Features or "
                "a Task"
            )
        tasks[name] = one if isinstance(one, Task) else one.task()
    first, task = next(iter(tasks.items()))
    for name, other in tasks.items():
        if (
            len(other) != len(task)
            or other.class_names != task.class_names
            or not np.array_equal(other.labelled, task.labelled)
            or not np.array_equal(other.labels, task.labels)
        ):
            raise ValueError(
                f"features: {name!r} has other items or labels than {first!r} "
                f"({len(other)} and {len(task)} items); extract both from the same "
                "data in the same order"
            )
    made: list[Candidate] = [
        ReadyCandidate(name, one, costs.get(name, 0.0)) for name, one in tasks.items()
    ]
    groups = [np.asarray(t.groups) for t in tasks.values() if t.groups is not None]
    same = all(np.array_equal(groups[0], other) for other in groups)
    return made, task if same else dataclasses.replace(task, groups=_joined(groups))


def _joined(groups: Sequence[np.ndarray]) -> np.ndarray:
    """Groups of items that share a group in any of several groupings."""
    found = groups[0]
    for other in groups[1:]:
        first = np.unique(other, return_index=True, return_inverse=True)
        found = joined_groups(found, first[1][first[2]])
    return found


def split_names(text: str) -> list[str]:
    """Names of encoders between commas; settings after a # may have commas, too.

    Args:
      text: such as "squeezenet,onnx:net.onnx#output=x,size=224".
    """
    names: list[str] = []
    for part in filter(None, map(str.strip, text.split(","))):
        if names and "#" in names[-1] and _SETTING.match(part):
            names[-1] += f",{part}"
        else:
            names.append(part)
    return names


def encoded_candidates(
    encoders: Any,
    examples: Examples,
    costs: Mapping[str, float],
    load: Mapping[str, Any],
    options: Mapping[str, Any],
) -> list[Candidate]:
    """Candidates that make features of `examples`.

    Args:
      encoders: names, `Encoder`s, modules or functions; a mapping of names to them; or
        names between commas; "installed" is one.
      examples: the data.
      costs: seconds an item, where they are known.
      load: options of `load_encoder`.
      options: of `extract_features`.

    Raises:
      ValueError: names the argument, what was found and what to do.
    """
    if isinstance(encoders, str):
        encoders = split_names(encoders)
    if not isinstance(encoders, (Mapping, Sequence)):
        raise ValueError(
            f"encoders: found {type(encoders).__name__}; give names, a list of "
            "encoders, or a mapping of names to them"
        )
    pairs = (
        list(encoders.items())
        if isinstance(encoders, Mapping)
        else [(None, one) for one in encoders]
    )
    made: list[Candidate] = []
    for given, one in pairs:
        if one == INSTALLED:
            names = [
                name
                for name, ready in ENCODERS.items()
                if ready.modality == examples.modality and ready.installed()
            ]
            if not names:
                raise ValueError(
                    f"encoders: no ready-made encoder of {examples.modality} is "
                    "installed; see tta-jax doctor"
                )
        else:
            names = [one]
        for item in names:
            if isinstance(item, str):
                encoder, reference = load_encoder(item, **load), item
            else:
                encoder, reference = as_encoder(item, examples.modality), ""
            check_modality(encoder, examples)
            name = str(given or reference or encoder.name)
            made.append(
                EncodedCandidate(
                    name, encoder, reference, examples, costs.get(name), options
                )
            )
    names = [one.name for one in made]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"encoders: {name!r} is named twice; take one out, or give a mapping "
                "of names to encoders"
            )
    return made


def checked_costs(costs: Any, names: Sequence[str]) -> dict[str, float]:
    """Seconds an item by name.

    Args:
      costs: a mapping, or None.
      names: of the candidates.

    Raises:
      ValueError: a name is unknown, or a cost is no number of at least 0.
    """
    found = dict(costs or {})
    for name, value in found.items():
        if name not in names:
            raise ValueError(
                f"costs: {name!r} is no candidate; they are {', '.join(names)}"
            )
        if not 0 <= real_number(value) < np.inf:
            raise ValueError(
                f"costs: found {value!r} for {name!r}; give seconds an item"
            )
    return {name: float(value) for name, value in found.items()}


def item_hashes(
    examples: Examples | None, rows: Sequence[np.ndarray], places: np.ndarray
) -> list[bytes]:
    """Hashes of items, by which exact copies are known.

    Args:
      examples: raw items, or None: then items are the same whose features are, under
        every candidate.
      rows: features of the items under each candidate.
      places: `(m,)` of the items in the data.
    """
    if examples is None:
        hashed = [row_hashes(np.ascontiguousarray(part)) for part in rows]
        return [
            b"".join(one[i].tobytes() for one in hashed) for i in range(len(places))
        ]
    found = []
    for place in places:
        try:
            item = examples.items[int(place)]
            found.append(
                digest(Path(item).read_bytes())
                if isinstance(item, os.PathLike)
                else digest(item)
            )
        except Exception:  # readers raise anything; extraction has named the item
            found.append(b"item %d" % place)
    return found
