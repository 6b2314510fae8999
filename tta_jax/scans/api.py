"""`scan`: sources and targets in, a `ScanResult` out. Order of the steps; no
mathematics.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from tta_jax._internal.numbers import whole_number
from tta_jax._internal.text import finite
from tta_jax._internal.typing import Array
from tta_jax.analysis.result import versions
from tta_jax.config import Config
from tta_jax.core.heads import SoftmaxHead
from tta_jax.scans.device_cache import DeviceMesh, usable_memory
from tta_jax.scans.distributed import Hosts, hosts
from tta_jax.scans.executor import Progress, SignalHandler, Writer, measure, run_stage
from tta_jax.scans.parquet_store import Folder, Store, locked
from tta_jax.scans.plan import Plan, make_plan
from tta_jax.scans.refinement_stage import Refining
from tta_jax.scans.result import ScanResult
from tta_jax.scans.screening_stage import Screening
from tta_jax.scans.sequential import is_batched, refine_sequentially
from tta_jax.scans.stage import ScanSettings
from tta_jax.scans.task_records import choose_pairs, divide_sources, make_task_records
from tta_jax.tasks.loaders import Loader, named_tasks
from tta_jax.tasks.splits import Seed, seed_from_key
from tta_jax.tasks.task import Task


class Interrupted(KeyboardInterrupt):
    """A scan was stopped by Ctrl-C or SIGTERM after its rows were written; the same
    call goes on.
    """


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
    """Evaluate every pair of a source and a target, or those of `pairs`; the best of
    each target in full.

    All pairs are *screened*: the closed-form recipe and the `tight` rung, on
    held-out items. For every target the best `refine` sources are then *refined*:
    learning as `analyze` does it, all rungs, certificates in float64, intervals.

    With the same `out` a second call goes on where an earlier one was stopped, by
    whatever, and computes nothing twice. Ctrl-C or SIGTERM finishes the chunk, writes
    it and raises `Interrupted`. A pair that cannot be evaluated is a row that says why.
    The same pair gives the same figures, up to float32 rounding, alone or among others,
    on one device or several. On a machine without accelerators call `use_cores` first:
    to jax the CPU is one device.

    Args:
      sources, targets: tasks, or dictionaries of tasks, or of functions without
        arguments that load one, by name. Without `targets` all pairs of sources, each
        with itself, too. Tasks of different known encoders are not paired.
      out: folder or URI (any file system that Arrow or fsspec knows) for the rows; None
        keeps them in a temporary folder that goes with the result.
      pairs: `(source, target)` by name or position, or a function of two records
        (`.name`, `.encoder`, `.classes`, `.items`, ...) that says which pairs to take.
      refine: how many sources of every target are refined; "all" refines every pair, 0
        none.
      config: `Config()` by default; screening uses its hold-out or folds, `clip`,
        `standardize`, `l2` and `source_per_class`.
      key: for splits; default `jax.random.key(0)`.
      heads: source classifiers on raw features, by the name of the source, or
        encoder/name; others are fitted.
      arrays: also write the assignment, class prior and label mixing of every pair.
      memory: bytes that may be used on each device; None for what is free.
      progress: called with a `Progress`.

    Raises:
      ValueError: for a call that cannot be; one line that names the argument, what was
        found and what to do.
      Interrupted: after Ctrl-C or SIGTERM.
    """
    job = prepare(
        sources,
        targets,
        pairs=pairs,
        refine=refine,
        config=config,
        key=key,
        heads=heads,
        arrays=arrays,
        memory=memory,
        progress=progress,
    )
    return job.run(out)


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """A scan that has been planned; `run` does it."""

    setup: ScanSettings
    hosts: Hosts
    progress: Callable[[Progress], None]

    @property
    def plan(self) -> Plan:
        return self.setup.plan

    def manifest(self) -> dict[str, Any]:
        """What a folder of this scan says of itself."""
        seed = self.setup.seed
        key = [
            int(word)
            for word in (
                *np.atleast_1d(np.asarray(seed.entropy, object)),
                *seed.spawn_key,
            )
        ]
        return {
            "config": finite(dataclasses.asdict(self.setup.config)),
            "key": key,
            "arrays": self.setup.arrays,
            "pairs": self.plan.digest(),
            "sources": [c.facts() for c in self.plan.sources[: self.plan.given]],
            "targets": [c.facts() for c in self.plan.targets],
            "versions": versions(),
        }

    def run(self, out: str | os.PathLike | None) -> ScanResult:
        """Screen, refine, and read the result."""
        temporary = None
        if out is None:
            if self.hosts.processes > 1:
                raise ValueError(
                    "out: several processes need a folder that all of them see"
                )
            out = temporary = tempfile.mkdtemp(prefix="tta_scan_")
        folder = Folder(out)
        stop = SignalHandler()
        with contextlib.ExitStack() as held:
            store = self._open(folder, held)
            if store.versions_changed:
                note = (
                    "the folder was begun with other versions: "
                    f"{store.versions_changed}"
                )
                self.progress(Progress("screen", 0, 0, note=note))
            held.enter_context(stop.listening())
            self._stage("screen", self.plan, store, stop)
            if not self.hosts.any(stop.asked) and self.setup.refine:
                chosen = best_sources(folder, self.plan, self.setup.refine)
                self._stage("refine", self.plan.only(chosen), store, stop)
            stopped = self.hosts.any(stop.asked)
        if stopped:
            raise Interrupted(
                f"stopped; the rows so far are in {folder}, and the same call with "
                "this folder goes on from there"
            )
        result = ScanResult(folder)
        if temporary is not None:  # it goes with its result
            weakref.finalize(result, shutil.rmtree, temporary, ignore_errors=True)
        return result

    def _open(self, folder: Folder, held: contextlib.ExitStack) -> Store:
        """The first process locks the folder, looks at it and writes the manifest, then
        the others read it.
        """
        process, manifest = self.hosts.process, self.manifest()
        store, refused = None, None
        try:
            if process == 0:
                held.enter_context(locked(folder))
                store = Store(folder, manifest, 0)
        except ValueError as error:
            refused = error
        if self.hosts.any(refused is not None):
            raise refused or ValueError(
                "out: the first process refused the folder and says why"
            )
        return store or Store(folder, manifest, process)

    def forecast(self) -> dict[str, Any]:
        """What the scan would take: pairs, shapes, programs, bytes and seconds; the
        last measured on one pair of each shape.

        The programs are compiled on the way, so a scan in the same process, or with
        kept compilations, begins sooner.
        """
        setup, plan, nothing = self.setup, self.plan, lambda _: None
        refines = setup.refine > 0 and is_batched(setup.config)
        stages = [
            Screening(setup, nothing),
            *([Refining(setup, nothing)] if refines else []),
        ]
        most = sum(
            len(np.unique(b.j)) * min(setup.refine, len(b)) for b in plan.buckets
        )
        refined = min(
            most, sum(map(len, plan.buckets)), len(plan.targets) * setup.refine
        )

        def shapes(role):
            return len({getattr(b, role) for b in plan.buckets})

        found: dict[str, Any] = {
            "pairs": len(plan),
            "sources": plan.given,
            "targets": len(plan.targets),
            "impossible": len(plan.failed[0]),
            "reasons": dict(collections.Counter(plan.failed[1]).most_common(5)),
            "refined": refined,
            "compilations": shapes("source")
            + shapes("target")
            + len(plan.buckets) * (3 if refines else 1),
            "buckets": [],
            "devices": setup.machine.devices * self.hosts.processes,
            "budget_megabytes": setup.machine.memory / 1e6,
            "megabytes": 0.0,
            "compile_seconds": 0.0,
            "profile_seconds": 0.0,
            "screen_seconds": 0.0,
            "refine_seconds": 0.0,
        }
        seen = {"i": np.zeros(0, np.int32), "j": np.zeros(0, np.int32)}
        for bucket in plan.buckets:
            share = len(bucket) / max(1, sum(map(len, plan.buckets)))
            for stage in stages:
                trial = measure(stage, plan, bucket)
                found["compile_seconds"] += trial.compile
                if math.isnan(trial.pair):  # the task that was tried cannot be read
                    continue
                if stage.name == "refine":
                    found["refine_seconds"] += (
                        trial.pair * refined * share / self.hosts.processes
                    )
                    continue
                # A task that is in several buckets has one profile.
                for role, places, seconds in (
                    ("i", bucket.i, trial.source),
                    ("j", bucket.j, trial.target),
                ):
                    found["profile_seconds"] += seconds * len(
                        np.setdiff1d(places, seen[role])
                    )
                    seen[role] = np.union1d(seen[role], places)
                found["screen_seconds"] += (
                    trial.pair * len(bucket) / self.hosts.processes
                )
                found["megabytes"] = max(found["megabytes"], trial.bytes / 1e6)
                found["buckets"].append(
                    {
                        "pairs": len(bucket),
                        "source": bucket.source._asdict(),
                        "target": bucket.target._asdict(),
                        "pairs_per_second": 1 / trial.pair,
                        "megabytes": trial.bytes / 1e6,
                    }
                )
        return found

    def _stage(self, name: str, plan: Plan, store: Store, stop: SignalHandler) -> None:
        left = plan.without(store.done(name))
        self.hosts.any(False)  # nobody writes before all have looked
        left = left.share(self.hosts.process, self.hosts.processes)
        begun, count = time.perf_counter(), [0, 0]
        tasks = [
            np.unique(
                np.concatenate(
                    [np.zeros(0, np.int32), *(getattr(b, role) for b in left.buckets)]
                )
            )
            for role in "ij"
        ]
        with Writer(store, name) as writer:

            def tell(number: int) -> None:
                count[0] += number
                self.progress(
                    Progress(
                        name,
                        count[0],
                        len(left),
                        writer.failed,
                        time.perf_counter() - begun,
                    )
                )

            def made(role: str) -> None:
                count[1] += 1
                total = max(count[1], sum(map(len, tasks)))
                self.progress(
                    Progress(
                        "profiles",
                        count[1],
                        total,
                        writer.failed,
                        time.perf_counter() - begun,
                    )
                )

            if name == "refine" and not is_batched(self.setup.config):
                refine_sequentially(self.setup, left, writer, stop, tell)
                return
            if len(left):
                tell(0)  # compiling and profiles come first
            stage = (Screening if name == "screen" else Refining)(
                self.setup, made, lambda: stop.asked
            )
            run_stage(stage, left, writer, self.setup.machine, stop, tell)


def best_sources(folder: Folder, plan: Plan, most: int) -> np.ndarray:
    """The numbers of the pairs with the highest screened scores of each target, at most
    so many; ties by number.
    """
    found = folder.dataset("pairs")
    if found is None:
        return np.zeros(0, np.int64)
    import pyarrow.dataset as ds

    table = found.to_table(
        columns=["pair", "score"],
        filter=(ds.field("stage") == "screen") & (ds.field("status") == "ok"),
    )
    pair, score = (
        table["pair"].to_numpy(),
        np.nan_to_num(table["score"].to_numpy(), nan=-math.inf),
    )
    _, target = plan.places(pair)
    order = np.lexsort((pair, -score, target))
    target = target[order]
    begin = (
        np.flatnonzero(np.r_[True, target[1:] != target[:-1]])
        if len(target)
        else np.zeros(0, int)
    )
    rank = np.arange(len(target)) - np.repeat(begin, np.diff(np.r_[begin, len(target)]))
    return np.sort(pair[order][rank < most])


def prepare(
    sources: Any,
    targets: Any = None,
    *,
    pairs: Any = None,
    refine: int | str = 3,
    config: Config | None = None,
    key: Any = None,
    heads: Mapping[str, SoftmaxHead] | None = None,
    arrays: bool = False,
    memory: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Job:
    """Check a call of `scan`, read its tasks and lay out its pairs; arguments and
    errors are those of `scan`.
    """
    config, seed, most = _check_call(config, key, refine)
    given_s = named_tasks(sources, "sources")
    given_t = given_s if targets is None else named_tasks(targets, "targets")
    heads = _check_heads(heads)
    if memory is not None and (whole_number(memory) or 0) < 1 << 20:
        raise ValueError(
            f"memory: found {memory!r}; give bytes, at least a million, or None"
        )
    tell = progress or (lambda _: None)
    begun, count, total = (
        time.perf_counter(),
        [0],
        len({id(task) for _, task in (*given_s, *given_t)}),
    )

    def read() -> None:
        count[0] += 1
        tell(Progress("reading", count[0], total, 0, time.perf_counter() - begun))

    known: dict[int, Any] = {}
    records_s = make_task_records(given_s, "source", config, seed, heads, known, read)
    if config.refit_head:
        records_s = [dataclasses.replace(record, head=None) for record in records_s]
    records_t = make_task_records(given_t, "target", config, seed, {}, known, read)
    i, j = choose_pairs(records_s, records_t, pairs)
    divided, place = divide_sources(records_s, records_t, i, j, config, seed)
    devices = jax.local_devices()
    machine = DeviceMesh(memory or usable_memory(devices), devices)
    return Job(
        ScanSettings(
            make_plan(
                divided, records_t, place, j, most > 0, given=(len(records_s), i)
            ),
            machine,
            config,
            seed,
            most,
            bool(arrays),
        ),
        hosts(),
        tell,
    )


def _check_call(config: Any, key: Any, refine: Any) -> tuple[Config, Seed, int]:
    if config is not None and not isinstance(config, Config):
        raise ValueError(
            f"config: found {type(config).__name__}; give a Config or None"
        )
    config = config or Config()
    if not (config.folds or config.holdout):
        raise ValueError(
            "config: a scan compares held-out figures; give a holdout above 0, or folds"
        )
    try:
        seed = seed_from_key(jax.random.key(0) if key is None else key)
    except (TypeError, ValueError):
        raise ValueError(
            f"key: found {type(key).__name__}; give jax.random.key(0) or another key"
        ) from None
    most = (1 << 62) if refine == "all" else whole_number(refine)
    if most is None or most < 0:
        raise ValueError(
            f"refine: found {refine!r}; give how many sources of each target are "
            "refined, or 'all'"
        )
    return config, seed, most


def _check_heads(heads: Any) -> Mapping[str, SoftmaxHead]:
    if heads is None:
        return {}
    if not isinstance(heads, Mapping):
        raise ValueError(
            f"heads: found {type(heads).__name__}; give a dictionary of heads by the "
            "name of the source"
        )
    for name, head in heads.items():
        if not (hasattr(head, "weight") and hasattr(head, "bias")):
            raise ValueError(
                f"heads: {name!r} is {type(head).__name__}; give a SoftmaxHead"
            )
    return heads
