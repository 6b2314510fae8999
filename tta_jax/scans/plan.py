"""Which pairs there are, which cannot be, and in which shapes the others are computed: few shapes, so few compilations."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tta_jax.scans.cards import Card
from tta_jax.scans.profiles import Shape, source_shape, target_shape

MOST_BUCKETS = 32
_STEPS = (4, 2, 1)  # of the ladder of sizes, steps an octave: the finest whose buckets are not too many


@dataclasses.dataclass(frozen=True, eq=False)
class Bucket:
    """Pairs of one shape, so of one compiled program.

    Attributes:
      source, target: padded sizes.
      i, j: `(n,)` int32 positions among sources and targets, by target.
      pair: `(n,)` int64, the pairs' numbers.
    """

    source: Shape
    target: Shape
    i: np.ndarray
    j: np.ndarray
    pair: np.ndarray

    def __len__(self) -> int:
        return len(self.pair)

    def take(self, index: np.ndarray | slice) -> Bucket:
        return dataclasses.replace(self, i=self.i[index], j=self.j[index], pair=self.pair[index])


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A scan laid out.

    Attributes:
      sources, targets: cards.
      buckets: the pairs that can be evaluated.
      failed: the numbers of the others -> why; `(n,)` int64 and as many reasons.
      source_shapes, target_shapes: padded sizes of every task that is in a bucket.
    """

    sources: Sequence[Card]
    targets: Sequence[Card]
    buckets: list[Bucket]
    failed: tuple[np.ndarray, list[str]]
    source_shapes: dict[int, Shape]
    target_shapes: dict[int, Shape]

    @functools.cached_property
    def source_names(self) -> list[str]:
        return [card.name for card in self.sources]

    @functools.cached_property
    def target_names(self) -> list[str]:
        return [card.name for card in self.targets]

    @functools.cached_property
    def encoders(self) -> list[str]:
        """Every encoder, "" for an unknown one first."""
        return list(dict.fromkeys(["", *(card.encoder for card in (*self.sources, *self.targets))]))

    @functools.cached_property
    def encoder_of(self) -> tuple[np.ndarray, np.ndarray]:
        """The place of the encoder of every source, and of every target, `(n,)` int32."""
        place = {name: k for k, name in enumerate(self.encoders)}
        of = lambda cards: np.array([place[card.encoder] for card in cards], np.int32)
        return of(self.sources), of(self.targets)

    def __len__(self) -> int:
        return len(self.failed[0]) + sum(len(bucket) for bucket in self.buckets)

    def digest(self) -> dict[str, Any]:
        """What pairs there are, for the manifest."""
        made = hashlib.blake2b(digest_size=16)
        made.update(np.sort(np.concatenate([self.failed[0], *(b.pair for b in self.buckets)])).tobytes())
        return {"number": len(self), "hash": made.hexdigest()}

    def places(self, pair: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions of source and target of pairs by number."""
        j, i = np.divmod(pair, len(self.sources))
        return i, j

    def without(self, done: np.ndarray) -> Plan:
        """What is left when the pairs of these numbers are done."""
        ids, reasons = self.failed
        left = ~np.isin(ids, done)
        buckets = [b.take(~np.isin(b.pair, done, assume_unique=True)) for b in self.buckets]
        failed = (ids[left], [why for why, keep in zip(reasons, left, strict=True) if keep])
        return dataclasses.replace(self, buckets=[b for b in buckets if len(b)], failed=failed)

    def only(self, wanted: np.ndarray) -> Plan:
        """These pairs alone."""
        everything = np.concatenate([self.failed[0], *(b.pair for b in self.buckets)])
        return self.without(np.setdiff1d(everything, wanted))

    def share(self, process: int, processes: int) -> Plan:
        """The part of one of several processes: of every bucket a run of targets."""
        if processes == 1:
            return self
        part = lambda n: slice(n * process // processes, n * (process + 1) // processes)
        buckets = [b.take(part(len(b))) for b in self.buckets]
        ids, reasons = self.failed
        mine = part(len(ids))
        return dataclasses.replace(self, buckets=[b for b in buckets if len(b)], failed=(ids[mine], reasons[mine]))


def make_plan(sources: Sequence[Card], targets: Sequence[Card], i: np.ndarray, j: np.ndarray) -> Plan:
    """Lay out the pairs `(i, j)`; the number of a pair is `j * len(sources) + i`."""
    pair = j.astype(np.int64) * len(sources) + i
    reasons = _impossible(sources, targets, i, j)
    bad = reasons != ""
    good = np.flatnonzero(~bad)
    shapes_s, shapes_t, kinds, which = {}, {}, np.zeros((2, 0), int), np.zeros(0, int)
    for steps in _STEPS:
        shapes_s = {
            k: source_shape(sources[k].classes, sources[k].dim, sources[k].parts, steps) for k in np.unique(i[good])
        }
        shapes_t = {
            k: target_shape(targets[k].classes, targets[k].dim, targets[k].parts, steps) for k in np.unique(j[good])
        }
        of_s, of_t = (_numbers(shapes, len(cards)) for shapes, cards in ((shapes_s, sources), (shapes_t, targets)))
        kinds, which = np.unique(np.stack([of_s[i[good]], of_t[j[good]]]), axis=1, return_inverse=True)
        if kinds.shape[1] <= MOST_BUCKETS:
            break
    names_s, names_t = list(dict.fromkeys(shapes_s.values())), list(dict.fromkeys(shapes_t.values()))
    which, buckets = which.reshape(-1), []
    for number, (s, t) in enumerate(kinds.T):
        mine = good[which == number]
        buckets.append(Bucket(names_s[s], names_t[t], i[mine], j[mine], pair[mine]))
    buckets.sort(key=len, reverse=True)
    return Plan(sources, targets, buckets, (pair[bad], reasons[bad].tolist()), shapes_s, shapes_t)


def _numbers(shapes: dict[int, Shape], count: int) -> np.ndarray:
    """The number of every task's shape, -1 for those without."""
    number = {shape: k for k, shape in enumerate(dict.fromkeys(shapes.values()))}
    out = np.full(count, -1)
    for k, shape in shapes.items():
        out[k] = number[shape]
    return out


def _impossible(sources: Sequence[Card], targets: Sequence[Card], i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Why each pair cannot be evaluated, `(n,)` text; "" where it can."""
    reasons = np.full(len(i), "", object)
    column = lambda cards, name: np.array([getattr(card, name) for card in cards], object)
    dim_s, dim_t = column(sources, "dim")[i], column(targets, "dim")[j]
    for k in np.flatnonzero(dim_s != dim_t):
        reasons[k] = f"{dim_s[k]} features in the source, {dim_t[k]} in the target; use the same encoder for both tasks"
    encoder_s, encoder_t = column(sources, "encoder")[i], column(targets, "encoder")[j]
    for k in np.flatnonzero((encoder_s != encoder_t) & (encoder_s != "") & (encoder_t != "")):
        reasons[k] = f"features of different encoders, {encoder_s[k]} and {encoder_t[k]}"
    for role, cards, place in (("target", targets, j), ("source", sources, i)):
        problems = column(cards, "problem")[place]
        for k in np.flatnonzero(problems != ""):
            reasons[k] = f"{role}: {problems[k]}"
    return reasons


class Shared:
    """Which held-out target items which source has learned from; few hashes are looked at, however many pairs there are."""

    def __init__(self, sources: Sequence[Card], targets: Sequence[Card]):
        self._parts = [self._part(sources, targets, p) for p in range(max((len(c.parts) for c in targets), default=0))]

    @staticmethod
    def _part(sources: Sequence[Card], targets: Sequence[Card], part: int):
        learned = [c.learned[part] if part < len(c.learned) else np.zeros(0, np.uint64) for c in sources]
        held = [c.held[part] if part < len(c.held) else np.zeros(0, np.uint64) for c in targets]
        every = lambda arrays: np.unique(np.concatenate([np.zeros(0, np.uint64), *arrays]))
        common = np.intersect1d(every(learned), every(held), assume_unique=True)
        if not len(common):
            return None
        place = lambda hashes: np.where(np.isin(hashes, common), np.searchsorted(common, hashes), -1)
        owners: dict[int, list[int]] = {}
        for number, hashes in enumerate(learned):
            for where in np.intersect1d(
                np.searchsorted(common, np.intersect1d(hashes, common)), np.arange(len(common))
            ):
                owners.setdefault(int(where), []).append(number)
        return {number: p for number, h in enumerate(held) if (p := place(h)).max(initial=-1) >= 0}, owners

    def rows(self, j: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """For target j: part, source, and which of the held-out items the source knows, as indices."""
        for part, found in enumerate(self._parts):
            if found is None or j not in found[0]:
                continue
            places, owners = found[0][j], found[1]
            by_source: dict[int, list[int]] = {}
            for item in np.flatnonzero(places >= 0):
                for source in owners[int(places[item])]:
                    by_source.setdefault(source, []).append(int(item))
            for source, items in by_source.items():
                yield part, source, np.array(items)
