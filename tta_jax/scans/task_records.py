"""Read, check, hash and split the tasks of a scan; what is wrong with one is kept in
its record.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from tta_jax._internal.compilation import inherit_jax_config
from tta_jax._internal.text import one_line
from tta_jax.config import Config
from tta_jax.core.heads import SoftmaxHead
from tta_jax.fitting.prepare import TaskSplit, divides_source, split_task
from tta_jax.tasks.loaders import Loader, load_task
from tta_jax.tasks.splits import Seed, array_hash, content_hash, row_hashes
from tta_jax.tasks.subdivision import with_enough_classes
from tta_jax.tasks.task import Task

_READERS = 8


@dataclasses.dataclass(frozen=True, eq=False)
class TaskRecord:
    """What a scan knows of a task before it computes anything.

    Attributes:
      name, encoder: what it is called; both together are unique among the sources, and
        among the targets.
      given: the task, or the function that loads it.
      items, dim, classes, content: sizes and a hash of the content; zeros and "" for a
        task that cannot be read.
      class_names: as text.
      parts: splits; empty where there are none.
      problem: why no pair with this task can be evaluated in this role; "" if nothing
        is wrong.
      learned, held: sorted hashes of the rows that learn (as a source) and of those
        held out (as a target), for each part.
      head: the source's own classifier, or None.
      wide: whether its features are float64.
    """

    name: str
    encoder: str = ""
    given: Task | Loader | None = None
    items: int = 0
    dim: int = 0
    classes: int = 0
    content: str = ""
    class_names: tuple[str, ...] = ()
    parts: tuple[TaskSplit, ...] = ()
    problem: str = ""
    learned: tuple[np.ndarray, ...] = ()
    held: tuple[np.ndarray, ...] = ()
    head: SoftmaxHead | None = None
    wide: bool = False

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
        task = load_task(self.given)
        if content_hash(task) != self.content:
            raise ValueError(f"{self.label} has changed while the scan was running")
        return task

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        names = ("name", "encoder", "items", "dim", "classes", "content", "problem")
        head = "" if self.head is None else array_hash(self.head.weight, self.head.bias)
        return {name: getattr(self, name) for name in names} | {
            "class_names": list(self.class_names),
            "head": head,
        }


def make_task_records(
    tasks: Sequence[tuple[str, Task | Loader]],
    role: str,
    config: Config,
    seed: Seed,
    heads: Mapping[str, SoftmaxHead],
    known: dict[int, TaskRecord],
    tell: Callable[[], None],
) -> list[TaskRecord]:
    """A record for every task in its role, "source" or "target"; `known` keeps what
    both roles share, by what was given.
    """
    records: list[TaskRecord] = []
    seen: set[str] = set()
    new = list(
        {id(given): given for _, given in tasks if id(given) not in known}.values()
    )
    with ThreadPoolExecutor(_READERS) as readers:  # files may be far away
        reading = {
            id(given): readers.submit(inherit_jax_config(_read), given, config, seed)
            for given in new
        }
        try:
            for given in new:
                known[id(given)] = reading[id(given)].result()
                tell()
        finally:
            for future in reading.values():
                future.cancel()
    for name, given in tasks:
        record = dataclasses.replace(known[id(given)], name=name)
        if record.label in seen:
            raise ValueError(
                f"{role}s: two of them are called {record.label!r}; give each its own "
                "name, as in a dictionary of tasks"
            )
        seen.add(record.label)
        records.append(record)
    return (
        records
        if role == "target"
        else [_as_source(record) for record in _with_heads(records, heads)]
    )


def _with_heads(
    records: list[TaskRecord], heads: Mapping[str, SoftmaxHead]
) -> list[TaskRecord]:
    """The sources with the heads that were given for them, by name or by encoder and
    name.
    """
    own: dict[str, SoftmaxHead] = {}
    for wanted, head in heads.items():
        found = [
            record.label for record in records if wanted in (record.name, record.label)
        ]
        # The encoder of a task that cannot be read is not known.
        if not found and not any(
            record.problem and wanted.endswith(f"/{record.name}") for record in records
        ):
            raise ValueError(
                f"heads: there is no source {wanted!r}; there are "
                f"{', '.join(c.label for c in records[:5])}"
            )
        if len(found) > 1:
            raise ValueError(
                f"heads: there are several sources {wanted!r}; name one of "
                f"{', '.join(found[:5])}"
            )
        own |= dict.fromkeys(found, head)
    return [
        dataclasses.replace(record, head=own.get(record.label)) for record in records
    ]


def _read(given: Task | Loader, config: Config, seed: Seed) -> TaskRecord:
    try:
        task = load_task(given)
    except ValueError as error:
        return TaskRecord("", given=given, problem=one_line(error))
    content = content_hash(task)
    names = tuple(str(c) for c in task.class_names)
    record = TaskRecord(
        "", task.encoder, given, len(task), task.dim, task.num_classes, content, names
    )
    record = dataclasses.replace(
        record, wide=np.asarray(task.features[:1]).dtype == np.float64
    )

    def wrong(why):
        return dataclasses.replace(record, problem=why)

    if not np.isfinite(np.asarray(task.features)).all():
        return wrong("its features hold NaN or infinity")
    if not np.asarray(task.labelled).any():
        return wrong(
            "it has no labels; a scan compares labelled tasks (analyze takes others)"
        )
    if task.num_classes < 2:
        return wrong(
            f"it has a single class ({task.class_names[0]!s}); nothing is left to "
            "classify"
        )
    try:
        parts = split_task(task, config, seed, content)
    except ValueError as error:
        return wrong(one_line(error))
    hashes = row_hashes(np.ascontiguousarray(task.features))
    learned, held = (
        [np.unique(hashes[p.source_learn]) for p in parts],
        [hashes[p.held] for p in parts],
    )
    return dataclasses.replace(
        record, parts=tuple(parts), learned=tuple(learned), held=tuple(held)
    )


def _as_source(record: TaskRecord) -> TaskRecord:
    """The record with what is wrong with the task as a source, and its head checked."""

    def wrong(why):
        return dataclasses.replace(record, problem=why, head=None)

    if record.problem:
        return wrong(record.problem)
    for part in record.parts:
        if ((part.source_learn_counts > 0) & (part.source_counts > 0)).sum() < 2:
            return wrong(
                "fewer than 2 of its classes have items both to learn from and to hold "
                "out"
            )
    if record.head is None:
        return record
    dtype = np.float64 if record.wide else np.float32
    try:
        head = SoftmaxHead.checked(
            record.head.weight, record.head.bias, record.classes, record.dim, dtype
        )
    except ValueError as error:
        return wrong(one_line(error))
    return dataclasses.replace(record, head=head)


def divide_sources(
    sources: list[TaskRecord],
    targets: Sequence[TaskRecord],
    i: np.ndarray,
    j: np.ndarray,
    config: Config,
    seed: Seed,
) -> tuple[list[TaskRecord], np.ndarray]:
    """Divide the classes of sources that have fewer than a target they are paired with.

    Args:
      sources, targets: records.
      i, j: `(n,)` positions of source and target of every pair.
      config, seed: of the scan.

    Returns:
      The sources, followed by divided ones, and the position of every pair's source.
    """
    classes_s, classes_t = (
        np.array([record.classes for record in records])
        for records in (sources, targets)
    )
    made, i = list(sources), i.copy()
    fewer = np.flatnonzero(classes_s[i] < classes_t[j])
    wanted = sorted({(int(i[n]), int(classes_t[j[n]])) for n in fewer})
    for place, number in wanted:
        record = sources[place]
        if record.problem or not divides_source(
            config, record.head, record.classes, number
        ):
            continue
        mine = fewer[(i[fewer] == place) & (classes_t[j[fewer]] == number)]
        made.append(_divided(record, number, config, seed))
        i[mine] = len(made) - 1
    return made, i


def _divided(record: TaskRecord, number: int, config: Config, seed: Seed) -> TaskRecord:
    given = record.given
    assert given is not None

    def divided() -> Task:
        return with_enough_classes(load_task(given), number)

    # A task in memory shares its features with the divided one.
    found = _read(divided() if isinstance(given, Task) else divided, config, seed)
    return _as_source(dataclasses.replace(found, name=record.name))


# -- pairs -----------------------------------------------------------------------------


def choose_pairs(
    sources: Sequence[TaskRecord], targets: Sequence[TaskRecord], pairs: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of source and target of every pair asked for, `(n,)` int32 each, by
    target, then by source.

    Raises:
      ValueError: for names that are not there, or no pair at all.
    """
    if pairs is None or callable(pairs):
        encoders = [
            np.array([record.encoder for record in records])
            for records in (sources, targets)
        ]
        same = encoders[0][None] == encoders[1][:, None]
        j, i = np.nonzero(
            same | (encoders[0] == "")[None] | (encoders[1] == "")[:, None]
        )
        if pairs is not None:
            keep = np.array(
                [
                    bool(pairs(sources[int(a)], targets[int(b)]))
                    for a, b in zip(i, j, strict=True)
                ],
                bool,
            )
            i, j = i[keep], j[keep]
    else:
        found = [place for pair in pairs for place in _places(pair, sources, targets)]
        j, i = np.array(sorted({(b, a) for a, b in found}), np.int64).reshape(-1, 2).T
    if not len(i):
        raise ValueError(
            "pairs: no pair is left; sources and targets need features of the same "
            "encoder"
        )
    return i.astype(np.int32), j.astype(np.int32)


def _places(
    pair: Any, sources: Sequence[TaskRecord], targets: Sequence[TaskRecord]
) -> list[tuple[int, int]]:
    try:
        first, second = (
            [] if isinstance(pair, str) else list(pair)
        )  # a name is not a pair, however many letters it has
    except (TypeError, ValueError):
        raise ValueError(
            f"pairs: found {pair!r}; give pairs (source, target) of names or positions"
        ) from None
    a, b = _find(first, sources, "source"), _find(second, targets, "target")

    def one(i, j):
        return (
            not sources[i].encoder
            or not targets[j].encoder
            or sources[i].encoder == targets[j].encoder
        )

    same = [(i, j) for i in a for j in b if one(i, j)]
    # Asked for by name, a pair that cannot be is a row with a reason, not left out.
    return same or [(i, j) for i in a for j in b]


def _find(wanted: Any, records: Sequence[TaskRecord], role: str) -> list[int]:
    if isinstance(wanted, (int, np.integer)) and not isinstance(wanted, bool):
        if not 0 <= wanted < len(records):
            raise ValueError(
                f"pairs: there is no {role} number {wanted}; there are {len(records)}"
            )
        return [int(wanted)]
    found = [
        i for i, record in enumerate(records) if wanted in (record.name, record.label)
    ]
    if not found:
        raise ValueError(
            f"pairs: there is no {role} {wanted!r}; there are "
            f"{', '.join(c.label for c in records[:5])}, ..."
        )
    return found
