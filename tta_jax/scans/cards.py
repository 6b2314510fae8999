"""The tasks of a scan at the door: read once, checked, hashed and split; what is wrong with one is written on its card."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tta_jax.archive import one_line
from tta_jax.config import Config
from tta_jax.head import SoftmaxHead
from tta_jax.scans.profiles import Part, content_hash, parts_of
from tta_jax.task import Seed, Task, row_hashes

Loader = Callable[[], Task]


@dataclasses.dataclass(frozen=True, eq=False)
class Card:
    """What a scan knows of a task before it computes anything.

    Attributes:
      name, encoder: what it is called; both together are unique among the sources, and among the targets.
      given: the task, or the function that loads it.
      items, dim, classes, content: sizes and a hash of the content; zeros and "" for a task that cannot be read.
      class_names: as text.
      parts: splits; empty where there are none.
      problem: why no pair with this task can be evaluated in this role; "" if nothing is wrong.
      learned, held: sorted hashes of the rows that learn (as a source) and of those held out (as a target), for each part.
      head: the source's own classifier, or None.
    """

    name: str
    encoder: str = ""
    given: Task | Loader | None = None
    items: int = 0
    dim: int = 0
    classes: int = 0
    content: str = ""
    class_names: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    problem: str = ""
    learned: tuple[np.ndarray, ...] = ()
    held: tuple[np.ndarray, ...] = ()
    head: SoftmaxHead | None = None

    @property
    def label(self) -> str:
        return f"{self.encoder}/{self.name}" if self.encoder else self.name

    def task(self) -> Task:
        """The task itself.

        Raises:
          ValueError: if it can no longer be read, or is not what it was.
        """
        if isinstance(self.given, Task):
            return self.given
        assert self.given is not None
        task = self.given()
        if content_hash(task) != self.content:
            raise ValueError(f"{self.label} has changed while the scan was running")
        return task

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        names = ("name", "encoder", "items", "dim", "classes", "content", "problem")
        return {name: getattr(self, name) for name in names} | {"class_names": list(self.class_names)}


def named(tasks: Any, argument: str) -> dict[str | tuple[str, str], Task | Loader]:
    """Tasks by name from a mapping or a sequence.

    Raises:
      ValueError: names the argument, what was found and what to do.
    """
    if isinstance(tasks, Task) or callable(tasks) or not isinstance(tasks, (Mapping, Iterable)):
        raise ValueError(
            f"{argument}: found {type(tasks).__name__}; give a list of tasks, or a dictionary of tasks by name"
        )
    if isinstance(tasks, Mapping):
        found = {str(name): task for name, task in tasks.items()}
    else:
        found = {}
        for task in tasks:
            if not isinstance(task, Task):
                raise ValueError(
                    f"{argument}: found {type(task).__name__}; give tasks, or a dictionary of tasks by name"
                )
            key = (task.encoder, task.name)
            if key in found:
                raise ValueError(
                    f"{argument}: two of them are called {task.name!r}; give each its own name, or give a dictionary of tasks by name"
                )
            found[key] = task
    for name, task in found.items():
        if not isinstance(task, Task) and not callable(task):
            raise ValueError(
                f"{argument}: {name!r} is {type(task).__name__}; give a Task, or a function that loads one"
            )
    if not found:
        raise ValueError(f"{argument}: there is no task; give at least one")
    return found


def make_cards(
    tasks: Mapping[Any, Task | Loader],
    role: str,
    config: Config,
    seed: Seed,
    heads: Mapping[str, SoftmaxHead],
    known: dict[int, Card],
    tell: Callable[[], None],
) -> list[Card]:
    """A card for every task in its role, "source" or "target"; `known` keeps what both roles share, by identity of what was given."""
    cards = []
    for key, given in tasks.items():
        name = key[1] if isinstance(key, tuple) else key
        card = known.get(id(given))
        if card is None:
            card = known[id(given)] = _read(given, config, seed)
        card = dataclasses.replace(card, name=name, head=heads.get(name) if role == "source" else None)
        cards.append(dataclasses.replace(card, problem=card.problem or _problem(card, role)))
        tell()
    labels = [card.label for card in cards]
    twice = (
        next((label for label in labels if labels.count(label) > 1), None) if len(set(labels)) < len(labels) else None
    )
    if twice is not None:
        raise ValueError(f"{role}s: two of them are called {twice!r}; give each its own name")
    return cards


def _read(given: Task | Loader, config: Config, seed: Seed) -> Card:
    try:
        task = given if isinstance(given, Task) else given()
    except (ValueError, OSError, MemoryError) as error:
        return Card("", given=given, problem=one_line(error))
    content = content_hash(task)
    card = Card(
        "", task.encoder, given, len(task), task.dim, task.num_classes, content, tuple(str(c) for c in task.class_names)
    )
    if not np.isfinite(np.asarray(task.features)).all():
        return dataclasses.replace(card, problem="its features hold NaN or infinity")
    known = np.asarray(task.labelled)
    if not known.any():
        return dataclasses.replace(
            card, problem="it has no labels; a scan compares labelled tasks (analyze takes others)"
        )
    if task.num_classes < 2:
        return dataclasses.replace(
            card, problem=f"it has a single class ({task.class_names[0]!s}); nothing is left to classify"
        )
    try:
        parts = parts_of(task, config, seed, content)
    except ValueError as error:
        return dataclasses.replace(card, problem=one_line(error))
    hashes = row_hashes(np.ascontiguousarray(task.features))
    return dataclasses.replace(
        card, parts=tuple(parts), learned=tuple(np.unique(hashes[p.source_learn]) for p in parts),
        held=tuple(hashes[p.held] for p in parts),
    )  # fmt: skip


def _problem(card: Card, role: str) -> str:
    if role == "target" or not card.parts:
        return ""
    for part in card.parts:
        if len(part.source_held) and len(part.source_learn):
            continue
        return "as a source, nothing is left to learn from or to hold out"
    if card.head is not None:
        shape = np.shape(card.head.weight)
        if shape != (card.classes, card.dim):
            return f"its head has weights of shape {shape}, expected {(card.classes, card.dim)}"
    return ""


# -- pairs -------------------------------------------------------------------------------------------------------------


def choose_pairs(sources: Sequence[Card], targets: Sequence[Card], pairs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Positions of source and target of every pair asked for, `(n,)` int32 each, by target, then by source.

    Raises:
      ValueError: for names that are not there, or no pair at all.
    """
    if pairs is None or callable(pairs):
        encoders = [np.array([card.encoder for card in cards]) for cards in (sources, targets)]
        match = encoders[0][None] == encoders[1][:, None]
        i_all = match | (encoders[0] == "")[None] | (encoders[1] == "")[:, None]
        j, i = np.nonzero(i_all)
        if pairs is not None:
            keep = np.array([bool(pairs(sources[a], targets[b])) for a, b in zip(i, j, strict=True)], bool)
            i, j = i[keep], j[keep]
    else:
        found = [place for pair in pairs for place in _places(pair, sources, targets)]
        j, i = np.array(sorted({(b, a) for a, b in found}), np.int64).reshape(-1, 2).T
    if not len(i):
        raise ValueError("pairs: no pair is left; sources and targets need features of the same encoder")
    return i.astype(np.int32), j.astype(np.int32)


def _places(pair: Any, sources: Sequence[Card], targets: Sequence[Card]) -> list[tuple[int, int]]:
    try:
        first, second = pair
    except (TypeError, ValueError):
        raise ValueError(f"pairs: found {pair!r}; give pairs (source, target) of names or positions") from None
    a, b = _find(first, sources, "source"), _find(second, targets, "target")
    same = [
        (i, j)
        for i in a
        for j in b
        if not sources[i].encoder or not targets[j].encoder or sources[i].encoder == targets[j].encoder
    ]
    # Asked for by name, a pair that cannot be is a row with a reason, not left out.
    return same or [(i, j) for i in a for j in b]


def _find(wanted: Any, cards: Sequence[Card], role: str) -> list[int]:
    if isinstance(wanted, (int, np.integer)) and not isinstance(wanted, bool):
        if not 0 <= wanted < len(cards):
            raise ValueError(f"pairs: there is no {role} number {wanted}; there are {len(cards)}")
        return [int(wanted)]
    found = [i for i, card in enumerate(cards) if wanted in (card.name, card.label)]
    if not found:
        raise ValueError(
            f"pairs: there is no {role} {wanted!r}; there are {', '.join(c.label for c in cards[:5])}, ..."
        )
    return found
