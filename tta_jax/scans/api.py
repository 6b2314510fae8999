"""`scan`: sources and targets in, a `ScanResult` out. Order of the steps; no mathematics."""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tta_jax.analysis import versions
from tta_jax.archive import finite
from tta_jax.config import Config
from tta_jax.head import SoftmaxHead
from tta_jax.scans.cards import Loader, choose_pairs, make_cards, named
from tta_jax.scans.hosts import Hosts, hosts
from tta_jax.scans.plan import Plan, make_plan
from tta_jax.scans.result import ScanResult
from tta_jax.scans.run import Machine, Progress, Stop, Writer, run_stage
from tta_jax.scans.stages import Refining, Screening
from tta_jax.scans.store import Folder, Store
from tta_jax.scans.tables import memory_of
from tta_jax.task import Seed, Task, seed_of, whole_number

Array = jax.Array


class Interrupted(KeyboardInterrupt):
    """A scan was stopped by Ctrl-C or SIGTERM after its rows were written; the same call goes on."""


def scan(
    sources: Mapping[str, Task | Loader] | Iterable[Any],
    targets: Mapping[str, Task | Loader] | Iterable[Any] | None = None,
    out: str | os.PathLike | None = None,
    *,
    pairs: Iterable[tuple[Any, Any]] | Callable[[Any, Any], bool] | None = None,
    refine: int | str = 3,
    config: Config | None = None,
    key: Array | None = None,
    heads: Mapping[str, SoftmaxHead] | None = None,
    arrays: bool = False,
    memory: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> ScanResult:
    """Evaluate every pair of a source and a target, or those of `pairs`; the best of each target in full.

    All pairs are *screened*: the spec's closed-form recipe and the `tight` rung, on held-out items. For every target the best
    `refine` sources are then *refined*: learning as `analyze` does it, all rungs, certificates in float64, intervals.

    With the same `out` a second call goes on where an earlier one was stopped, by whatever, and computes nothing twice. Ctrl-C or
    SIGTERM finishes the chunk, writes it and raises `Interrupted`. A pair that cannot be evaluated is a row that says why. The
    same pair gives the same figures, up to float32 rounding, alone or among others, on one device or several.

    Args:
      sources, targets: tasks, or dictionaries of tasks, or of functions without arguments that load one, by name. Without
        `targets` all pairs of sources, each with itself, too. Tasks of different known encoders are not paired.
      out: folder or URI (any file system that Arrow or fsspec knows) for the rows; None keeps them in a temporary folder that
        goes with the result.
      pairs: `(source, target)` by name or position, or a function of two cards (`.name`, `.encoder`, `.classes`, `.items`, ...)
        that says which pairs to take.
      refine: how many sources of every target are refined; "all" refines every pair, 0 none.
      config: `Config()` by default; screening uses its hold-out or folds, `clip`, `standardize`, `l2` and `source_per_class`.
      key: for splits; default `jax.random.key(0)`.
      heads: source classifiers on raw features, by the name of the source; others are fitted.
      arrays: also write the assignment, class prior and label mixing of every pair.
      memory: bytes that may be used on each device; None for what is free.
      progress: called with a `Progress`.

    Raises:
      ValueError: for a call that cannot be; one line that names the argument, what was found and what to do.
      Interrupted: after Ctrl-C or SIGTERM.
    """
    job = prepare(
        sources, targets, pairs=pairs, refine=refine, config=config, key=key, heads=heads, arrays=arrays, memory=memory,
        progress=progress,
    )  # fmt: skip
    return job.run(out)


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """A scan that has been planned; `run` does it."""

    plan: Plan
    refine: int
    config: Config
    seed: Seed
    arrays: bool
    machine: Machine
    hosts: Hosts
    progress: Callable[[Progress], None]

    @property
    def parts(self) -> int:
        """Parts of the hold-out that every pair is evaluated on."""
        return max(1, self.config.folds)

    @property
    def dtype(self) -> Any:
        """Of the features: float32, float64 where jax computes with it and the tasks were made for it."""
        return np.dtype(np.float64 if any(c.wide for c in (*self.plan.sources, *self.plan.targets)) else np.float32)

    def manifest(self) -> dict[str, Any]:
        """What a folder of this scan says of itself."""
        key = [int(word) for word in np.atleast_1d(np.asarray(self.seed.entropy, object))] + [
            int(w) for w in self.seed.spawn_key
        ]
        return {
            "config": finite(dataclasses.asdict(self.config)), "key": key, "arrays": self.arrays,
            "pairs": self.plan.digest(), "sources": [c.facts() for c in self.plan.sources],
            "targets": [c.facts() for c in self.plan.targets], "versions": versions(),
        }  # fmt: skip

    def run(self, out: str | os.PathLike | None) -> ScanResult:
        """Screen, refine, and read the result."""
        temporary = None
        if out is None:
            if self.hosts.processes > 1:
                raise ValueError("out: several processes need a folder that all of them see")
            temporary = tempfile.TemporaryDirectory(prefix="tta_scan_")
            out = temporary.name
        folder = Folder(out)
        if self.hosts.process == 0:
            store = Store(folder, self.manifest(), 0)
            self.hosts.any(False)
        else:
            self.hosts.any(False)  # the first process writes the manifest
            store = Store(folder, self.manifest(), self.hosts.process)
        if store.versions_changed:
            self.progress(
                Progress("screen", 0, 0, note=f"the folder was begun with other versions: {store.versions_changed}")
            )
        stop = Stop()
        with store.locked(), stop.listening():
            self._stage("screen", self.plan, store, stop)
            if not self.hosts.any(stop.asked) and self.refine:
                chosen = best_of(folder, self.plan, self.refine)
                self._stage("refine", self.plan.only(chosen), store, stop)
            stopped = self.hosts.any(stop.asked)
        if stopped:
            where = "in a temporary folder" if temporary else f"in {folder}"
            raise Interrupted(
                f"stopped; the rows so far are {where}, and the same call with this folder goes on from there"
            )
        return ScanResult(folder, temporary)

    def _stage(self, name: str, plan: Plan, store: Store, stop: Stop) -> None:
        left = plan.without(store.done(name))
        self.hosts.any(False)  # nobody writes before all have looked
        left = left.share(self.hosts.process, self.hosts.processes)
        begun, count = time.perf_counter(), [0, 0]
        with Writer(store, name) as writer:

            def tell(number: int) -> None:
                count[0] += number
                self.progress(Progress(name, count[0], len(left), writer.failed, time.perf_counter() - begun))

            def made(role: str) -> None:
                count[1] += 1
                self.progress(Progress("profiles", count[1], 0, writer.failed, time.perf_counter() - begun, ""))

            kind = Screening if name == "screen" else Refining
            stage = kind(self.plan, self.machine, self.config, self.seed, self.parts, self.dtype, made, self.arrays)
            run_stage(stage, left, writer, self.machine, stop, tell)


def best_of(folder: Folder, plan: Plan, most: int) -> np.ndarray:
    """The numbers of the pairs with the highest screened scores of each target, at most so many; ties by number."""
    found = folder.dataset("pairs")
    if found is None:
        return np.zeros(0, np.int64)
    import pyarrow.dataset as ds

    table = found.to_table(
        columns=["pair", "score"], filter=(ds.field("stage") == "screen") & (ds.field("status") == "ok")
    )
    pair, score = table["pair"].to_numpy(), np.nan_to_num(table["score"].to_numpy(), nan=-math.inf)
    _, target = plan.places(pair)
    order = np.lexsort((pair, -score, target))
    target = target[order]
    begin = np.flatnonzero(np.r_[True, target[1:] != target[:-1]]) if len(target) else np.zeros(0, int)
    rank = np.arange(len(target)) - np.repeat(begin, np.diff(np.r_[begin, len(target)]))
    return np.sort(pair[order][rank < most])


def prepare(
    sources: Any, targets: Any = None, *, pairs: Any = None, refine: int | str = 3, config: Config | None = None, key: Any = None,
    heads: Mapping[str, SoftmaxHead] | None = None, arrays: bool = False, memory: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Job:  # fmt: skip
    """Check a call of `scan`, read its tasks and lay out its pairs; arguments and errors are those of `scan`."""
    config, seed, most = _check_call(config, key, refine)
    given_s = named(sources, "sources")
    given_t = given_s if targets is None else named(targets, "targets")
    heads = _check_heads(heads, given_s)
    if memory is not None and (whole_number(memory) or 0) < 1 << 20:
        raise ValueError(f"memory: found {memory!r}; give bytes, at least a million, or None")
    tell = progress or (lambda _: None)
    begun, count, total = time.perf_counter(), [0], len(given_s) + len(given_t)

    def read() -> None:
        count[0] += 1
        tell(Progress("reading", count[0], total, 0, time.perf_counter() - begun))

    known: dict[int, Any] = {}
    cards_s = make_cards(given_s, "source", config, seed, heads, known, read)
    cards_t = make_cards(given_t, "target", config, seed, {}, known, read)
    i, j = choose_pairs(cards_s, cards_t, pairs)
    devices = jax.local_devices()
    machine = Machine(memory or memory_of(devices), devices)
    return Job(make_plan(cards_s, cards_t, i, j), most, config, seed, bool(arrays), machine, hosts(), tell)


def _check_call(config: Any, key: Any, refine: Any) -> tuple[Config, Seed, int]:
    if config is not None and not isinstance(config, Config):
        raise ValueError(f"config: found {type(config).__name__}; give a Config or None")
    config = config or Config()
    if not (config.folds or config.holdout):
        raise ValueError("config: a scan compares held-out figures; give a holdout above 0, or folds")
    try:
        seed = seed_of(jax.random.key(0) if key is None else key)
    except (TypeError, ValueError):
        raise ValueError(f"key: found {type(key).__name__}; give jax.random.key(0) or another key") from None
    most = (1 << 62) if refine == "all" else whole_number(refine)
    if most is None or most < 0:
        raise ValueError(f"refine: found {refine!r}; give how many sources of each target are refined, or 'all'")
    return config, seed, most


def _check_heads(heads: Any, sources: Sequence[tuple[str, Any]]) -> Mapping[str, SoftmaxHead]:
    if heads is None:
        return {}
    if not isinstance(heads, Mapping):
        raise ValueError(f"heads: found {type(heads).__name__}; give a dictionary of heads by the name of the source")
    names = {name for name, _ in sources}
    for name, head in heads.items():
        if name not in names:
            raise ValueError(f"heads: there is no source {name!r}; there are {', '.join(sorted(names)[:5])}")
        if not (hasattr(head, "weight") and hasattr(head, "bias")):
            raise ValueError(f"heads: {name!r} is {type(head).__name__}; give a SoftmaxHead")
    return heads
