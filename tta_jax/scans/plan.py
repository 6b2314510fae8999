"""Which pairs there are, which cannot be, and in which shapes the others are computed:
few shapes, so few compilations.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tta_jax.fitting.prepare import TaskShape, source_shape, target_shape
from tta_jax.scans.task_records import TaskRecord

MOST_BUCKETS = 32
_STEPS = (
    4,
    2,
    1,
)  # of the ladder of sizes, steps an octave: the finest whose buckets are not too many


@dataclasses.dataclass(frozen=True, eq=False)
class Bucket:
    """Pairs of one shape, so of one compiled program.

    Attributes:
      source, target: padded sizes.
      i, j: `(n,)` int32 positions among sources and targets, by target.
      pair: `(n,)` int64, the pairs' numbers.
    """

    source: TaskShape
    target: TaskShape
    i: np.ndarray
    j: np.ndarray
    pair: np.ndarray

    def __len__(self) -> int:
        return len(self.pair)

    def take(self, index: np.ndarray | slice) -> Bucket:
        return dataclasses.replace(
            self, i=self.i[index], j=self.j[index], pair=self.pair[index]
        )


def encoder_codes(
    sources: Sequence[TaskRecord], targets: Sequence[TaskRecord]
) -> tuple[list[str], tuple[np.ndarray, np.ndarray]]:
    """Every encoder, "" for an unknown one first, and the place of that of every source
    and every target, `(n,)` int32.
    """
    names = list(
        dict.fromkeys(["", *(record.encoder for record in (*sources, *targets))])
    )
    place = {name: k for k, name in enumerate(names)}

    def of(records):
        return np.array([place[record.encoder] for record in records], np.int32)

    return names, (of(sources), of(targets))


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A scan laid out.

    Attributes:
      sources, targets: records; sources that were divided for some targets follow
        those that were given.
      given: how many sources were given.
      buckets: the pairs that can be evaluated.
      failed: the numbers of the others -> why; `(n,)` int64 and as many reasons.
    """

    sources: Sequence[TaskRecord]
    targets: Sequence[TaskRecord]
    given: int
    buckets: list[Bucket]
    failed: tuple[np.ndarray, list[str]]

    @functools.cached_property
    def source_names(self) -> list[str]:
        return [record.name for record in self.sources]

    @functools.cached_property
    def target_names(self) -> list[str]:
        return [record.name for record in self.targets]

    @functools.cached_property
    def encoders(self) -> tuple[list[str], tuple[np.ndarray, np.ndarray]]:
        """See `encoder_codes`."""
        return encoder_codes(self.sources, self.targets)

    def __len__(self) -> int:
        return len(self.failed[0]) + sum(len(bucket) for bucket in self.buckets)

    def digest(self) -> dict[str, Any]:
        """What pairs there are, for the manifest."""
        made = hashlib.blake2b(digest_size=16)
        made.update(
            np.sort(
                np.concatenate([self.failed[0], *(b.pair for b in self.buckets)])
            ).tobytes()
        )
        return {"number": len(self), "hash": made.hexdigest()}

    def places(self, pair: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the given source and the target of pairs by number."""
        j, i = np.divmod(pair, self.given)
        return i, j

    def without(self, done: np.ndarray) -> Plan:
        """What is left when the pairs of these numbers are done."""
        return self._where(done, False)

    def only(self, wanted: np.ndarray) -> Plan:
        """These pairs alone."""
        return self._where(wanted, True)

    def _where(self, numbers: np.ndarray, inside: bool) -> Plan:
        marked = np.zeros(self.given * len(self.targets), bool)
        marked[numbers] = True
        ids, reasons = self.failed
        keep = marked[ids] == inside
        kept = [
            b
            if (mine := marked[b.pair] == inside).all()
            else b.take(np.flatnonzero(mine))
            for b in self.buckets
        ]
        failed = (ids[keep], [why for why, k in zip(reasons, keep, strict=True) if k])
        return dataclasses.replace(
            self, buckets=[b for b in kept if len(b)], failed=failed
        )

    def share(self, process: int, processes: int) -> Plan:
        """The part of one of several processes: of every bucket a run of targets."""
        if processes == 1:
            return self

        def part(n):
            return slice(n * process // processes, n * (process + 1) // processes)

        buckets = [b.take(part(len(b))) for b in self.buckets]
        ids, reasons = self.failed
        mine = part(len(ids))
        return dataclasses.replace(
            self,
            buckets=[b for b in buckets if len(b)],
            failed=(ids[mine], reasons[mine]),
        )


def make_plan(
    sources: Sequence[TaskRecord],
    targets: Sequence[TaskRecord],
    i: np.ndarray,
    j: np.ndarray,
    refine: bool = True,
    given: tuple[int, np.ndarray] | None = None,
) -> Plan:
    """Lay out the pairs `(i, j)`, sorted by target, then source.

    Args:
      sources, targets: records.
      i, j: positions among them.
      refine: whether pairs are refined, too.
      given: how many sources were given, and the position of every pair's among them;
        where others were divided. The number of a pair is `j * given + i`.
    """
    count, place = (len(sources), i) if given is None else given
    pair = j.astype(np.int64) * count + place
    order = np.lexsort((i, j))
    i, j, pair = i[order], j[order], pair[order]
    bad, reasons = _impossible(sources, targets, i, j)
    good = slice(None) if not len(bad) else np.delete(np.arange(len(i)), bad)
    i_good, j_good, pair_good = i[good], j[good], pair[good]
    counts_s = np.bincount(i_good, minlength=len(sources))
    counts_t = np.bincount(j_good, minlength=len(targets))
    shapes_s, shapes_t = (
        _shapes(sources, source_shape, counts_s),
        _shapes(targets, target_shape, counts_t),
    )
    names_s, of_s = _numbered(shapes_s, len(sources))
    names_t, of_t = _numbered(shapes_t, len(targets))
    kind = of_s[i_good] * np.int64(len(names_t)) + of_t[j_good]
    number = np.bincount(kind, minlength=len(names_s) * len(names_t)).reshape(
        len(names_s), len(names_t)
    )
    merged_s, merged_t = merge_shapes(
        names_s,
        names_t,
        number,
        _per_name(of_s, counts_s),
        _per_name(of_t, counts_t),
        refine,
    )
    final_s, final_t = list(dict.fromkeys(merged_s)), list(dict.fromkeys(merged_t))
    place_s = np.array([final_s.index(s) for s in merged_s] or [0])
    place_t = np.array([final_t.index(s) for s in merged_t] or [0])
    kind = place_s[of_s[i_good]] * np.int64(len(final_t)) + place_t[of_t[j_good]]
    order = np.argsort(kind, kind="stable")
    ends = np.cumsum(np.bincount(kind, minlength=len(final_s) * len(final_t)))
    buckets, begin = [], 0
    for which, end in enumerate(ends.tolist()):
        if end > begin:
            mine = order[begin:end]
            s, t = divmod(which, len(final_t))
            buckets.append(
                Bucket(
                    final_s[s], final_t[t], i_good[mine], j_good[mine], pair_good[mine]
                )
            )
        begin = end
    buckets.sort(key=len, reverse=True)
    return Plan(sources, targets, count, buckets, (pair[bad], reasons))


def _shapes(
    records: Sequence[TaskRecord], shape: Callable[..., TaskShape], counts: np.ndarray
) -> dict[int, TaskShape]:
    """Padded sizes of every task that is in a pair, on the finest ladder that gives a
    handful.
    """
    used = np.flatnonzero(counts).tolist()
    found: dict[int, TaskShape] = {}
    for steps in _STEPS:
        found = {
            k: shape(records[k].classes, records[k].dim, records[k].parts, steps)
            for k in used
        }
        if len(set(found.values())) <= MOST_BUCKETS:
            break
    return found


def _numbered(
    shapes: dict[int, TaskShape], count: int
) -> tuple[list[TaskShape], np.ndarray]:
    """The distinct shapes, and the number of every task's among them, `(count,)`; -1
    for those without.
    """
    names = list(dict.fromkeys(shapes.values()))
    place = {shape: k for k, shape in enumerate(names)}
    out = np.full(count, -1)
    for k, shape in shapes.items():
        out[k] = place[shape]
    return names, out


def _per_name(of: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How many tasks have each shape."""
    return np.bincount(of[counts > 0]) if (counts > 0).any() else np.zeros(0, int)


# Seconds, roughly, on a CPU: what makes two shapes worth two programs. They decide how
# pairs are grouped, nothing else.
_COMPILE_PAIRS, _COMPILE_REFINE, _COMPILE_PROFILE = 5.0, 20.0, 3.0


def _pair_seconds(source: TaskShape, target: TaskShape) -> float:
    slots = min(source.classes, target.classes)
    return (
        5e-5
        + 6e-8 * target.items * slots
        + 2e-9 * target.items * target.classes * slots
    )


def _profile_seconds(shape: TaskShape) -> float:
    return 5e-11 * (
        600.0 * shape.items * shape.dim * shape.classes + 15.0 * shape.dim**3
    )


def merge_shapes(
    sources: list[TaskShape],
    targets: list[TaskShape],
    pairs: np.ndarray,
    tasks_s: np.ndarray,
    tasks_t: np.ndarray,
    refine: bool,
) -> tuple[list[TaskShape], list[TaskShape]]:
    """For every shape the one that its tasks are padded to: the same for two where that
    costs less than compiling twice.

    Greedy: the cheapest union first, on until no union saves time and there are at most
    `MOST_BUCKETS` buckets.

    Args:
      pairs: `(len(sources), len(targets))`, how many there are of each two shapes.
      tasks_s, tasks_t: how many tasks have each shape.
      refine: whether pairs are refined, too.
    """
    shapes, tasks = (sources, targets), (tasks_s, tasks_t)
    once = _COMPILE_PAIRS + (_COMPILE_REFINE if refine else 0.0)

    def union(role, group):
        return TaskShape(
            *(max(v) for v in zip(*(shapes[role][k] for k in group), strict=True))
        )

    groups: list[list[frozenset[int]]] = [
        [frozenset((k,)) for k in range(len(s))] for s in shapes
    ]
    known: tuple[dict[frozenset[int], tuple[float, int]], ...] = (
        {},
        {},
    )  # as long as the other role's groups stay

    def line(role: int, group: frozenset[int]) -> tuple[float, int]:
        if group not in known[role]:
            known[role][group] = computed(role, group)
        return known[role][group]

    def computed(role: int, group: frozenset[int]) -> tuple[float, int]:
        """Seconds and buckets of a group of sources with all groups of targets, or the
        other way round.
        """
        mine, seconds, buckets = union(role, group), 0.0, 0
        counts = (
            pairs[list(group)].sum(0) if role == 0 else pairs[:, list(group)].sum(1)
        )
        for other in groups[1 - role]:
            number = counts[list(other)].sum()
            if number:
                theirs = union(1 - role, other)
                seconds += (
                    number
                    * _pair_seconds(*((mine, theirs) if role == 0 else (theirs, mine)))
                    + once
                )
                buckets += 1
        profiles = _COMPILE_PROFILE + tasks[role][list(group)].sum() * _profile_seconds(
            mine
        )
        return seconds + profiles, buckets

    while True:
        best = None
        for role in (0, 1):
            for a, b in itertools.combinations(groups[role], 2):
                saved = line(role, a)[0] + line(role, b)[0] - line(role, a | b)[0]
                if best is None or saved > best[0]:
                    best = (saved, role, a, b)
        buckets = sum(line(0, group)[1] for group in groups[0])
        if best is None or (best[0] <= 0 and buckets <= MOST_BUCKETS):
            break
        _, role, a, b = best
        groups[role] = [g for g in groups[role] if g not in (a, b)] + [a | b]
        known[1 - role].clear()
    final = [[TaskShape(0, 0, 0, 0)] * len(s) for s in shapes]
    for role in (0, 1):
        for group in groups[role]:
            for k in group:
                final[role][k] = union(role, group)
    return final[0], final[1]


def _impossible(
    sources: Sequence[TaskRecord],
    targets: Sequence[TaskRecord],
    i: np.ndarray,
    j: np.ndarray,
) -> tuple[np.ndarray, list[str]]:
    """Places of the pairs that cannot be evaluated, and why."""

    def column(records, name):
        return np.array([getattr(record, name) for record in records])

    wrong_s, wrong_t = (
        column(records, "problem") != "" for records in (sources, targets)
    )
    _, (code_s, code_t) = encoder_codes(sources, targets)
    dim_s, dim_t = column(sources, "dim"), column(targets, "dim")
    other = (code_s[i] != code_t[j]) & (code_s[i] > 0) & (code_t[j] > 0)
    bad = np.flatnonzero(wrong_s[i] | wrong_t[j] | other | (dim_s[i] != dim_t[j]))
    return bad, [
        _why(sources[a], targets[b])
        for a, b in zip(i[bad].tolist(), j[bad].tolist(), strict=True)
    ]


def _why(source: TaskRecord, target: TaskRecord) -> str:
    if source.problem:
        return f"source: {source.problem}"
    if target.problem:
        return f"target: {target.problem}"
    if source.encoder and target.encoder and source.encoder != target.encoder:
        return f"features of different encoders, {source.encoder} and {target.encoder}"
    return (
        f"{source.dim} features in the source, {target.dim} in the target; use the "
        "same encoder for both tasks"
    )


class SharedItems:
    """Which held-out target items which source has learned from; few hashes are looked
    at, however many pairs there are.
    """

    def __init__(self, sources: Sequence[TaskRecord], targets: Sequence[TaskRecord]):
        parts = max((len(record.parts) for record in targets), default=0)
        self._owners = [self._table(sources, targets, part) for part in range(parts)]
        self._targets = targets

    @staticmethod
    def _table(
        sources: Sequence[TaskRecord], targets: Sequence[TaskRecord], part: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sorted hashes that sources have learned from and some target holds out, and
        whose they are, `(m,)` each.
        """

        def pick(records, name):
            return [
                getattr(c, name)[part]
                if part < len(c.parts)
                else np.zeros(0, np.uint64)
                for c in records
            ]

        held = np.unique(
            np.concatenate([np.zeros(0, np.uint64), *pick(targets, "held")])
        )
        hashes, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int32)]
        for number, learned in enumerate(pick(sources, "learned")):
            common = learned[np.isin(learned, held, assume_unique=True)]
            hashes.append(common)
            owners.append(np.full(len(common), number, np.int32))
        all_hashes, all_owners = np.concatenate(hashes), np.concatenate(owners)
        order = np.argsort(all_hashes, kind="stable")
        return all_hashes[order], all_owners[order]

    def of_pair(self, i: int, j: int) -> dict[int, np.ndarray]:
        """For each part in which source i knows held-out items of target j, which."""
        return {part: items for part, source, items in self.rows(j) if source == i}

    def rows(self, j: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """For target j: part, source, and which of the held-out items the source knows,
        as indices.
        """
        for part, (hashes, owners) in enumerate(self._owners):
            if not len(hashes) or part >= len(self._targets[j].parts):
                continue
            held = self._targets[j].held[part]
            first, last = (
                np.searchsorted(hashes, held, side) for side in ("left", "right")
            )
            known = np.repeat(np.arange(len(held)), last - first)
            whose = np.concatenate(
                [
                    np.zeros(0, np.int32),
                    *(owners[a:b] for a, b in zip(first, last, strict=True) if b > a),
                ]
            )
            if not len(whose):
                continue
            order = np.argsort(whose, kind="stable")
            names, begin = np.unique(whose[order], return_index=True)
            for source, items in zip(
                names.tolist(), np.split(known[order], begin[1:]), strict=True
            ):
                yield part, source, items
