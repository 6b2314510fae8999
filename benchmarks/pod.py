"""What a scan of ten million pairs would cost on a pod, and what would break first as
it grows; takes less than a minute.

    python -m benchmarks.pod
    python -m benchmarks.pod --sources 10000 --targets 10000 --hosts 16 --rate 50000

Every figure says where it comes from. `measured`: the library's own functions ran here,
on one CPU, on synthetic tasks or rows of the size asked for. `calculated`: arithmetic
on sizes and on measured and assumed figures, or measured on fewer and scaled (the last
column says on how many). `assumed`: an option. Nothing here knows how fast an
accelerator is; `python -m benchmarks.scans screen` measures the rate of this machine.
"""

from __future__ import annotations

import os

# Before numpy and scipy load it: threads of OpenBLAS wait for each other in a loop, and
# where other processes use the
# cores a small factorisation then takes up to a hundred times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import io
import math
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow.parquet

import tta_jax as tta
from tta_jax._internal.text import finite
from tta_jax.analysis.result import versions
from tta_jax.scans import executor
from tta_jax.scans.api import best_sources
from tta_jax.scans.device_cache import (
    DeviceMesh,
    ProfileCache,
    ProfileTable,
    _empty_input,
)
from tta_jax.scans.parquet_store import Folder, Store, _parquet, schema
from tta_jax.scans.plan import Bucket, Plan, SharedItems, _impossible, make_plan
from tta_jax.scans.profiles import content_hash
from tta_jax.scans.result import ScanResult
from tta_jax.scans.screening import Screened
from tta_jax.scans.screening_stage import _LANES, Screening
from tta_jax.scans.stage import ScanSettings
from tta_jax.scans.task_records import TaskRecord, choose_pairs, make_task_records
from tta_jax.tasks.loaders import named_tasks
from tta_jax.tasks.splits import seed_from_key

MEASURED, CALCULATED, ASSUMED = "measured", "calculated", "assumed"
GROWTH = (1, 10, 100)  # times as many pairs
PLANNED = 1000  # sources and targets of the plans that are built here
ROWS = 1 << 16  # of a part
FILES = 24  # parts that are read back here
POOL = 300  # tasks that share items
TRIALS = 2000

SEED = seed_from_key(jax.random.key(0))
CONFIG = tta.Config()


@dataclasses.dataclass(frozen=True)
class Pod:
    """The scan and the machine; what the options say.

    Attributes:
      sources, targets, items, dim, classes: of the scan; every task has as many items,
        features and classes.
      hosts, devices: processes, and accelerators of each.
      rate, refine_rate: pairs a second that one device screens and learns.
      profile_ms, certify_ms: device time of a task's profile, and host time of a
        refined pair's certificate.
      spread: relative standard deviation of the hosts' speeds.
      write_latency, read_latency: seconds of one operation on the storage.
      bandwidth: bytes a second between a host and the storage.
      device_memory, host_memory: bytes.
      refined: sources of each target that are refined.
      claims: how many shares a host would take one after the other, if shares were
        claimed as hosts get free.
    """

    sources: int
    targets: int
    items: int
    dim: int
    classes: int
    hosts: int
    devices: int
    rate: float
    refine_rate: float
    profile_ms: float
    certify_ms: float
    spread: float
    write_latency: float
    read_latency: float
    bandwidth: float
    device_memory: float
    host_memory: float
    refined: int
    claims: int

    @property
    def pairs(self) -> int:
        return self.sources * self.targets

    @property
    def host_rate(self) -> float:
        """Pairs a second that the devices of one host screen."""
        return self.rate * self.devices

    def grown(self, times: int) -> Pod:
        """So many times the pairs, on the same pod."""
        side = math.sqrt(times)
        return dataclasses.replace(
            self, sources=round(self.sources * side), targets=round(self.targets * side)
        )


# -- tasks, records, plans -------------------------------------------------------------


def task(items: int, dim: int, classes: int, seed: int) -> tta.Task:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(items) % classes)
    return tta.Task.from_arrays(
        rng.standard_normal((items, dim), np.float32), labels, name=f"task-{seed}"
    )


def cards_of(tasks: Sequence[tta.Task], role: str) -> list[TaskRecord]:
    return make_task_records(
        named_tasks(tasks, f"{role}s"), role, CONFIG, SEED, {}, {}, lambda: None
    )


def cloned(records: Sequence[TaskRecord], role: str, count: int) -> list[TaskRecord]:
    """So many records of distinct tasks; splits and hashes are of a few, which are
    shared.
    """

    def content(k):
        return hashlib.blake2b(f"{role}{k}".encode(), digest_size=16).hexdigest()

    return [
        dataclasses.replace(
            records[k % len(records)],
            name=f"imagenet-{role}-of-classes-{k:06d}",
            encoder="mobilenet_v3_small",
            content=content(k),
        )
        for k in range(count)
    ]


@contextlib.contextmanager
def timed(into: dict[str, float], name: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    into[name] = time.perf_counter() - begun


def reading(pod: Pod) -> dict[str, float]:
    """Seconds and bytes of reading a task that is in memory: hash, checks, splits,
    hashes of rows.
    """
    tasks, out = [task(pod.items, pod.dim, pod.classes, k) for k in range(12)], {}
    cards_of(tasks[:2], "source")
    with timed(out, "record"):
        records = cards_of(tasks, "source")
    with timed(out, "hash"):
        for one in tasks:
            content_hash(one)
    arrays = [
        a for c in records for group in (*c.parts, c.learned, c.held) for a in group
    ]
    return {name: seconds / len(tasks) for name, seconds in out.items()} | {
        "features": float(np.mean([np.asarray(t.features).nbytes for t in tasks])),
        "card_bytes": sum(a.nbytes for a in arrays) / len(tasks),
    }


class Planned(NamedTuple):
    """A plan that was built.

    Attributes:
      plan: it.
      seconds: of what was done to it, for each pair.
      kept, peak, only: bytes for each pair, while a stage runs, while it is made, and
        while `only` cuts it down.
      impossible: bytes for each pair while reasons are looked for.
    """

    plan: Plan
    seconds: dict[str, float]
    kept: float
    peak: float
    only: float
    impossible: float


def planned(
    pod: Pod, items: Sequence[int], classes: Sequence[int], side: int
) -> Planned:
    """Build, digest, share and filter a plan as every process does."""
    kinds = [(n, k) for n in items for k in classes]
    few = [
        task(n, 8, k, 100 * place + number)
        for place, (n, k) in enumerate(kinds)
        for number in range(6)
    ]
    few_s, few_t = (
        [
            dataclasses.replace(c, dim=pod.dim) for c in cards_of(few, role)
        ]  # splits do not look at the features
        for role in ("source", "target")
    )
    sources, targets = cloned(few_s, "source", side), cloned(few_t, "target", side)
    seconds: dict[str, float] = {}
    tracemalloc.start()
    with timed(seconds, "pairs"):
        i, j = choose_pairs(sources, targets, None)
    tracemalloc.reset_peak()
    with timed(seconds, "impossible"):
        _impossible(sources, targets, i, j)
    impossible = tracemalloc.get_traced_memory()[1]
    with timed(seconds, "plan"):
        plan = make_plan(sources, targets, i, j)
    del i, j
    with timed(seconds, "digest"):
        plan.digest()
    peak = tracemalloc.get_traced_memory()[1]
    left = plan.without(np.zeros(0, np.int64)).share(0, pod.hosts)
    kept = tracemalloc.get_traced_memory()[0]
    del left
    best = np.sort(np.random.default_rng(0).choice(len(plan), 3 * side, replace=False))
    tracemalloc.reset_peak()
    with timed(seconds, "only"):
        plan.only(best)
    only = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    half = np.sort(np.concatenate([b.pair for b in plan.buckets]))[: len(plan) // 2]
    with timed(seconds, "without"):
        plan.without(half)
    scale = 1 / len(plan)
    each = {name: s * scale for name, s in seconds.items()}
    return Planned(
        plan, each, *(scale * size for size in (kept, peak, only, impossible))
    )


def pool(pod: Pod) -> dict[str, float]:
    """Tasks cut out of one pool share items: looking up who knows what, and what it
    does to the driver.
    """
    rng = np.random.default_rng(1)
    many, each = 10 * pod.classes, max(2, pod.items // pod.classes)
    features = rng.standard_normal((many, 4 * each, 8)).astype(np.float32)
    tasks = []
    for number in range(POOL):
        kinds = rng.choice(many, pod.classes, replace=False)
        rows = np.concatenate(
            [features[k, rng.choice(4 * each, each, replace=False)] for k in kinds]
        )
        tasks.append(
            tta.Task.from_arrays(
                rows, np.repeat(np.arange(pod.classes), each), name=f"cut-{number}"
            )
        )
    sources, targets = cards_of(tasks, "source"), cards_of(tasks, "target")
    out: dict[str, float] = {}
    with timed(out, "shared"):
        SharedItems(sources, targets)
    plan = make_plan(sources, targets, *choose_pairs(sources, targets, None))
    stage = stage_of(pod, plan, DeviceMesh(int(pod.device_memory), jax.local_devices()))
    chunk = max(plan.buckets, key=len)
    with timed(out, "launch"):
        launched = launch(stage, plan, chunk)
    out["launch"] /= len(chunk)
    out["items"] = float(features.shape[0] * features.shape[1])
    out["known"] = float(np.mean(np.asarray(launched[1]) > 0))
    return out


# -- rows ------------------------------------------------------------------------------


def stage_of(pod: Pod, plan: Plan, machine: DeviceMesh) -> Screening:
    setup = ScanSettings(
        plan=plan,
        machine=machine,
        config=CONFIG,
        seed=SEED,
        refine=pod.refined,
        arrays=False,
    )
    return Screening(setup, lambda _: None)


def figures(count: int, classes: int) -> Screened:
    """Figures as a device hands them back, random, rounded to float32."""
    rng = np.random.default_rng(2)
    wide = {
        "assigned": np.zeros((count, classes), np.int32),
        "share": np.full((count, classes), 0.1, np.float32),
    }
    held = np.float32(125)
    special = wide | {
        "items": np.full(count, held, np.int32),
        "target_accuracy": rng.integers(0, int(held), count).astype(np.float32) / held,
        "ridge": rng.choice(np.logspace(-3, 1, 5), count).astype(np.float32),
        "offset": rng.integers(0, 2, count).astype(np.float32),
    }

    def number():
        return np.abs(rng.standard_normal(count, np.float32)) + np.float32(0.1)

    return Screened(
        **{
            name: special[name] if name in special else number()
            for name in Screened._fields
        }
    )


def launch(stage: Screening, plan: Plan, chunk: Bucket) -> Any:
    """The driver's work before a chunk is on its way, for devices that take no time."""
    out = figures(len(chunk), chunk.target.classes)
    given = {
        "call": lambda *_: out,
        "units": len(chunk),
        "lanes": 1,
        "blocks": 1,
        "rows": (1, 1),
    }
    # `launch` does not look at the others.
    program = executor.Program(
        **{
            field.name: given.get(field.name, 0)
            for field in dataclasses.fields(executor.Program)
        }
    )
    rng = np.random.default_rng(3)
    probe = {
        name: rng.random(len(plan.targets)) for name in ("probe_loss", "probe_accuracy")
    }

    def table(records, host):
        return ProfileTable(None, np.arange(len(records), dtype=np.int32), {}, host)

    return stage.launch(
        program, chunk, table(plan.sources, {}), table(plan.targets, probe)
    )


def renamed(plan: Plan, sources: int, targets: int) -> tuple[Plan, Bucket]:
    """A plan of so many tasks that holds a single part's pairs."""
    bucket = plan.buckets[0]
    s, t = (
        cloned(plan.sources[:1], "source", sources),
        cloned(plan.targets[:1], "target", targets),
    )
    pair = np.arange(min(ROWS, sources * targets), dtype=np.int64)
    j, i = np.divmod(pair, sources)
    chunk = dataclasses.replace(
        bucket, i=i.astype(np.int32), j=j.astype(np.int32), pair=pair
    )
    none = (np.zeros(0, np.int64), [])
    return Plan(s, t, [chunk], none), chunk


class Rows(NamedTuple):
    """Seconds a row, bytes a row of a part, and the share of them that is `pair`, and
    that is read to rank.
    """

    seconds: dict[str, float]
    size: float
    raw: bytes
    pair: float
    ranks: float


def rows_of(pod: Pod, plan: Plan) -> Rows:
    """One part of a scan of this size through the driver's, the writer's and Parquet's
    hands.
    """
    plan, chunk = renamed(plan, pod.sources, pod.targets)
    stage = stage_of(pod, plan, DeviceMesh(int(pod.device_memory), jax.local_devices()))
    best: dict[str, float] = {}
    raw = b""
    for _ in range(3):  # the first one loads Arrow
        now: dict[str, float] = {}
        with timed(now, "launch"):
            launched = launch(stage, plan, chunk)
        with timed(now, "finish"):
            rows, _ = stage.finish(chunk, launched)
        with timed(now, "names"):
            executor.row_names(plan, chunk.pair)
        with timed(now, "join"):
            executor._together([(rows, None)] * 2)
        with timed(now, "encode"):
            raw = _parquet(rows, schema())
        now["join"] /= 2
        best = {name: min(s, best.get(name, s)) for name, s in now.items()}
    group = pyarrow.parquet.ParquetFile(io.BytesIO(raw)).metadata.row_group(0)
    columns = [group.column(k) for k in range(group.num_columns)]
    size = {c.path_in_schema: c.total_compressed_size / len(raw) for c in columns}
    ranks = sum(size[name] for name in ("pair", "score", "status"))
    return Rows(
        {name: s / len(chunk) for name, s in best.items()},
        len(raw) / len(chunk),
        raw,
        size["pair"],
        ranks,
    )


def through(pod: Pod, plan: Plan, store: Store, parts: int = 8) -> float:
    """Rows a second of driver and writer thread together, devices that take no time, a
    local folder.
    """
    plan, chunk = renamed(plan, pod.sources, pod.targets)
    stage = stage_of(pod, plan, DeviceMesh(int(pod.device_memory), jax.local_devices()))
    begun = time.perf_counter()
    with executor.Writer(store, "screen") as writer:
        for _ in range(parts):
            writer.put(*stage.finish(chunk, launch(stage, plan, chunk)))
    return parts * len(chunk) / (time.perf_counter() - begun)


# -- the folder ------------------------------------------------------------------------


def manifest_of(
    pod: Pod, sources: Sequence[TaskRecord], targets: Sequence[TaskRecord]
) -> dict[str, Any]:
    """As `Job.manifest` makes it."""
    return {
        "config": finite(dataclasses.asdict(CONFIG)),
        "key": [0, 0],
        "arrays": False,
        "pairs": {"number": pod.pairs, "hash": "0" * 32},
        "sources": [c.facts() for c in sources],
        "targets": [c.facts() for c in targets],
        "versions": versions(),
    }


def folder(pod: Pod, plan: Plan, raw: bytes, where: Path) -> dict[str, float]:
    """Size of the manifest; seconds of opening a folder again, reading what is done,
    choosing the best, ranking.
    """
    records = (
        cloned(plan.sources[:1], "source", pod.sources),
        cloned(plan.targets[:1], "target", pod.targets),
    )
    manifest, out = (
        manifest_of(pod, *records),
        {"tasks": float(pod.sources + pod.targets)},
    )
    place = Folder(where / "scan")
    Store(place, manifest)
    out["manifest"] = float((where / "scan" / "manifest.json").stat().st_size)
    with timed(out, "open"):
        store = Store(place, manifest)
    for number in range(FILES):
        place.write(
            raw, "pairs", "stage=screen", f"part-00000-{number:012d}-{ROWS}.parquet"
        )
    with timed(out, "done"):
        done = store.done("screen")
    wide = Plan(*records, [], (np.zeros(0, np.int64), []))
    tracemalloc.start()
    with timed(out, "best"):
        best_sources(place, wide, pod.refined)
    out["best_bytes"] = tracemalloc.get_traced_memory()[1] / len(done)
    tracemalloc.stop()
    result = ScanResult.load(where / "scan")
    with timed(out, "rank"):
        result.rank()
    with timed(out, "summary"):
        result.summary()
    for name in ("best", "rank", "summary"):
        out[name] /= len(done)
    out["done"] /= FILES
    out["through"] = through(pod, plan, Store(Folder(where / "writer"), manifest))
    return out


# -- profiles and programs -------------------------------------------------------------


def programs(pod: Pod) -> dict[str, float]:
    """Seconds on this CPU of a profile, and of compiling one bucket's program and both
    profiles'.
    """
    tasks = [task(pod.items, pod.dim, pod.classes, k) for k in range(4)]
    sources, targets = cards_of(tasks, "source"), cards_of(tasks, "target")
    plan = make_plan(sources, targets, *choose_pairs(sources, targets, None))
    bucket, out = plan.buckets[0], {}
    stage = stage_of(pod, plan, DeviceMesh(int(pod.device_memory), jax.local_devices()))
    with timed(out, "compile"):
        stage.compile(bucket, stage.blocks)
    for role, records, shape, places in (
        ("source", sources, bucket.source, bucket.i),
        ("target", targets, bucket.target, bucket.j),
    ):
        few = np.unique(places)[:1].tolist()
        with timed(out, f"{role}_first"):
            stage.tables.get(role, shape, records, few, 1)
        stage.tables.forget()
        with timed(out, role):
            stage.tables.get(role, shape, records, few, 1)
        out[f"{role}_first"] -= out[role]
    return out


class Sizes(NamedTuple):
    """Bytes of a task's profile in a stage, and of what the host keeps of it, by
    role.
    """

    screen: dict[str, int]
    refine: dict[str, int]
    inputs: dict[str, int]
    keep: int
    back: int


def sizes(pod: Pod, bucket: Bucket, machine: DeviceMesh) -> Sizes:
    """From the shapes of a bucket."""
    shapes, kind = (
        {"source": bucket.source, "target": bucket.target},
        np.dtype(np.float32),
    )

    def of(stage):
        return {
            role: ProfileCache(stage, CONFIG, SEED, machine, kind).bytes_of(role, shape)
            for role, shape in shapes.items()
        }

    inputs = {
        role: sum(
            math.prod(v.shape) * v.dtype.itemsize
            for v in jax.tree.leaves(_empty_input(role, shape, kind))
        )
        for role, shape in shapes.items()
    }
    back = 4 * (len(Screened._fields) - 2 + 2 * bucket.target.classes)
    return Sizes(of("screen"), of("refine"), inputs, bucket.target.held + 8, back)


# -- shares and stragglers -------------------------------------------------------------


def call_size(pairs: int, devices: int) -> int:
    """Pairs of one call of a bucket that has so many, as `Screening.compile`
    decides.
    """
    lanes = _LANES * devices
    return max(1, min(Screening.blocks, -(-pairs // lanes))) * lanes


def computed(pairs: int, devices: int) -> int:
    """Pairs that devices compute for so many of a bucket: the last call is filled
    up.
    """
    units = call_size(pairs, devices)
    return -(-pairs // units) * units


class Shares(NamedTuple):
    """How evenly hosts are loaded.

    Attributes:
      pairs, work: largest over mean; a pair's work is its target's items times the
        classes of the smaller task.
      filled: pairs computed over pairs wanted, mean and worst host.
      profiles, fewest: profiles made by a host, and tasks of which it needs one, over
        the number of tasks.
      kept: bytes of all tables that a host's devices end up with.
      buckets: programs.
    """

    pairs: float
    work: float
    filled: tuple[float, float]
    profiles: float
    fewest: float
    kept: float
    buckets: int


def shares(pod: Pod, plan: Plan, bytes_of: Callable[[str, Any], int]) -> Shares:
    """The real `Plan.share` of every host; sizes of buckets and tables are scaled to
    the pod's scan.
    """
    machine, scale = (
        DeviceMesh(int(0.85 * pod.device_memory), jax.local_devices()),
        pod.pairs / len(plan),
    )
    tasks = len(plan.sources) + len(plan.targets)
    pairs, work, filled, profiles, fewest, held = [], [], [], [], [], []
    for host in range(pod.hosts):
        mine, made, touched = plan.share(host, pod.hosts), 0, set()
        kept: dict[tuple[str, Any], list[int]] = {}

        def cost(b):
            return min(b.source.classes, b.target.classes) * b.target.items

        pairs.append(len(mine))
        work.append(sum(len(b) * cost(b) for b in mine.buckets))
        real = [round(len(b) * scale) for b in mine.buckets]
        filled.append(sum(computed(n, pod.devices) for n in real) / max(sum(real), 1))
        for bucket in mine.buckets:
            for places_s, places_t, _ in executor._tiles(
                bucket, machine.table_rows(bucket, bytes_of)[:2]
            ):
                for role, shape, places in (
                    ("source", bucket.source, places_s),
                    ("target", bucket.target, places_t),
                ):
                    touched |= {(role, k) for k in places}
                    if kept.get((role, shape)) != places:  # as `Tables.get` does
                        kept[role, shape] = places
                        made += len(places)
        profiles.append(made / tasks)
        fewest.append(len(touched) / tasks)
        held.append(sum(len(places) * bytes_of(*key) for key, places in kept.items()))

    def even(values):
        return max(values) / (sum(values) / len(values))

    return Shares(
        even(pairs),
        even(work),
        (float(np.mean(filled)), max(filled)),
        max(profiles),
        max(fewest),
        max(held) * math.sqrt(scale),
        len(plan.buckets),
    )


def stragglers(pod: Pod, slow: bool, claim: float) -> tuple[np.ndarray, np.ndarray]:
    """Time until the last host is done, 1 where all are equally fast: one share each,
    and shares that are claimed.

    Returns:
      A figure for each trial.
    """
    rng = np.random.default_rng(4)
    speed = np.maximum(1 + pod.spread * rng.standard_normal((TRIALS, pod.hosts)), 0.1)
    if slow:
        speed[:, 0] *= 0.5
    free, trial = np.zeros_like(speed), np.arange(TRIALS)
    for _ in range(pod.hosts * pod.claims):
        host = free.argmin(1)
        free[trial, host] += 1 / (pod.claims * speed[trial, host]) + claim
    return (1 / speed).max(1), free.max(1)


# -- sums ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Found:
    """Everything that was measured here; `part` is bytes of a row of a part by how many
    times the scan has grown.
    """

    read: dict[str, float]
    even: Planned
    mixed: Planned
    rows: Rows
    sizes: Sizes
    programs: dict[str, float]
    folder: dict[str, float]
    pool: dict[str, float]
    shares: Shares
    part: dict[int, float]


def measure(pod: Pod) -> Found:
    machine = DeviceMesh(int(pod.device_memory), jax.local_devices())
    read = reading(pod)
    even = planned(pod, (pod.items,), (pod.classes,), PLANNED)

    def around(n):
        return (max(2, n // 2), n, 2 * n)

    mixed = planned(pod, around(pod.items), around(pod.classes), PLANNED)
    rows = rows_of(pod, even.plan)
    screened = ProfileCache("screen", CONFIG, SEED, machine, np.float32)
    bytes_of = functools.cache(screened.bytes_of)
    with tempfile.TemporaryDirectory(prefix="tta_pod_") as name:
        kept = folder(pod, even.plan, rows.raw, Path(name))
    part = {
        times: rows.size if times == 1 else rows_of(pod.grown(times), even.plan).size
        for times in GROWTH
    }
    return Found(
        read,
        even,
        mixed,
        rows,
        sizes(pod, even.plan.buckets[0], machine),
        programs(pod),
        kept,
        pool(pod),
        shares(pod, mixed.plan, bytes_of),
        part,
    )


class Cost(NamedTuple):
    """What a scan costs, each host unless it says otherwise.

    Attributes:
      seconds: by what they are spent on, in order.
      memory: bytes on a host.
      device: bytes on a device.
      part, files, written: rows of a part; files and bytes of all hosts.
      manifest: bytes.
      writer: rows a second that the writer thread can do.
      again: seconds of a resumed run besides what is left to compute.
    """

    seconds: dict[str, float]
    memory: dict[str, float]
    device: dict[str, float]
    part: int
    files: int
    written: float
    manifest: float
    writer: float
    again: dict[str, float]


def cost(pod: Pod, found: Found, times: int) -> Cost:
    """Of the scan of `pod`, which has so many times the pairs of the one that was
    measured.
    """
    pairs, tasks, share = pod.pairs, pod.sources + pod.targets, pod.pairs / pod.hosts
    refined = min(pod.refined, pod.sources) * pod.targets / pod.hosts
    made, size, plan = (
        pod.sources + pod.targets / pod.hosts,
        found.part[times],
        found.even.seconds,
    )
    load, profile = (
        found.read["features"] / pod.bandwidth + pod.read_latency,
        pod.profile_ms / 1e3,
    )
    buckets = [len(b) / len(found.even.plan) * share for b in found.even.plan.buckets]
    # Whole calls until there are rows enough, or what the writer has when its seconds
    # are over.
    units = call_size(round(max(buckets)), pod.devices)
    rows = max(
        units,
        min(
            -(-executor._PART_ROWS // units) * units,
            pod.host_rate * executor._PART_SECONDS,
        ),
    )
    part = int(min(share, rows))
    parts = math.ceil(share / part)
    # Object storage does not rename: a folder is asked for, a temporary object written,
    # copied and removed.
    writing = share * (
        found.rows.seconds["join"] + found.rows.seconds["encode"] + size / pod.bandwidth
    )
    writing += 4 * parts * pod.write_latency
    screening = sum(computed(round(n), pod.devices) for n in buckets) / pod.host_rate
    waiting = max(0.0, max(writing, share / found.folder["through"]) - screening)
    first = found.programs["source_first"] + found.programs["target_first"]
    seconds = {
        "reading, hashing, splitting": tasks * (found.read["record"] + load),
        "choosing pairs, plan, digest": pairs
        * (plan["pairs"] + plan["plan"] + plan["digest"]),
        "compiling": len(buckets) * found.programs["compile"] + first,
        # Two threads read and prepare, one program runs at a time.
        "profiles": made * max(profile, (profile + found.read["hash"] + load) / 2),
        "screening": screening,
        "waiting for driver or writer": waiting,
        "best of each target, their plan": pairs
        * (
            found.folder["best"]
            + plan["only"]
            + size * found.rows.ranks / pod.bandwidth
        ),
        "refining": refined
        * max(1 / (pod.refine_rate * pod.devices), pod.certify_ms / 1e3),
    }
    few = min(pod.sources, refined)
    memory = {
        "plan: peak": pairs * found.even.peak,
        "plan: kept while a stage runs": pairs * found.even.kept,
        "plan of the best: peak": pairs * found.even.only,
        "best of each target: peak": pairs
        * (found.folder["best_bytes"] + 16),  # and Arrow's two columns
        "records": tasks * found.read["card_bytes"],
        "tasks given in memory": tasks * found.read["features"],
        "refining: samples": few * found.sizes.inputs["source"]
        + pod.targets / pod.hosts * found.sizes.inputs["target"],
    }

    def tables(of, sources):
        return sources * of["source"] + pod.targets / pod.hosts * of["target"]

    device = {
        "screening": tables(found.sizes.screen, pod.sources),
        "refining": tables(found.sizes.refine, few),
    }
    files = pod.hosts * parts
    again = {
        "reading parts": files * (found.folder["done"] + pod.read_latency)
        + pairs * size / pod.bandwidth,
        "leaving out what is done": pairs * plan["without"],
        "all that comes before screening": sum(list(seconds.values())[:4]),
    }
    manifest = found.folder["manifest"] * tasks / found.folder["tasks"]
    return Cost(
        seconds,
        memory,
        device,
        part,
        files,
        pairs * size,
        manifest,
        share / writing,
        again,
    )


# -- printing --------------------------------------------------------------------------

HEAD = ("what", "figure", "from", "how")


def size_of(count: float) -> str:
    """Bytes in words."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return (
                f"{count / unit:,.1f} {name}"
                if count < 100 * unit
                else f"{count / unit:,.0f} {name}"
            )
    return f"{count:.0f} B"


def time_of(seconds: float) -> str:
    """Seconds in words."""
    if seconds >= 100:
        return f"{seconds:,.0f} s"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def calculated(what: str, figure: str, how: str = "") -> tuple[str, ...]:
    return what, figure, CALCULATED, how


def measured(what: str, figure: str, how: str = "") -> tuple[str, ...]:
    return what, figure, MEASURED, how


def show(title: str, rows: Sequence[Sequence[str]], head: Sequence[str] = HEAD) -> None:
    """A table of text: words to the left, numbers to the right."""
    width = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]

    def right(k, word):
        return 0 < k < len(head) - 1 and word[:1].isdigit()

    def line(row):
        return "  ".join(
            word.rjust(width[k]) if right(k, word) else word.ljust(width[k])
            for k, word in enumerate(row)
        ).rstrip()

    print(
        "",
        title,
        line(head),
        "-" * min(132, sum(width) + 2 * len(width) - 2),
        *map(line, rows),
        sep="\n",
    )


def report_bytes(pod: Pod, found: Found, now: Cost) -> None:
    tasks, own, s = pod.sources + pod.targets, pod.targets / pod.hosts, found.sizes
    features, share = found.read["features"], pod.pairs / pod.hosts
    room = table_room(pod)

    def fits(n):
        return (
            f"{'fits' if n <= room else 'does NOT fit'}: tables may take "
            f"{size_of(room)} of {size_of(pod.device_memory)}"
        )

    screen, refine = now.device["screening"], now.device["refining"]
    inputs = pod.sources * s.inputs["source"] + own * s.inputs["target"]
    one = f"{size_of(s.screen['source'])}, {size_of(s.screen['target'])}"
    rows = [
        calculated(
            "features read by a host",
            size_of(tasks * features),
            f"`make_cards` reads all {tasks:,} tasks",
        ),
        calculated("  by all hosts", size_of(pod.hosts * tasks * features)),
        calculated(
            "  again for profiles, a host",
            size_of((pod.sources + own) * features),
            "where tasks are given as functions: all sources, its own targets",
        ),
        measured(
            "profile of a source, a target", one, "`Tables.bytes_of`, real shapes"
        ),
        calculated("profiles on each device", size_of(screen), fits(screen)),
        calculated("  refining", size_of(refine), fits(refine)),
        calculated(
            "to devices: inputs of profiles",
            size_of(inputs),
            "padded; to the host's first device only",
        ),
        calculated("  tables, to all of a host", size_of(pod.devices * screen)),
        calculated(
            "  indices and masks of pairs",
            size_of(share * s.keep),
            f"{s.keep} B a pair",
        ),
        calculated(
            "from devices: figures",
            size_of(share * s.back),
            f"{s.back} B a pair, of one host's pairs",
        ),
        measured(
            "a row in a part",
            f"{found.rows.size:.1f} B",
            f"`_parquet`, {ROWS:,} rows; {found.rows.pair:.0%} is `pair`",
        ),
        calculated(
            "written, all hosts", size_of(now.written), "screening, without `arrays`"
        ),
    ]
    show("Bytes", rows)


def table_room(pod: Pod) -> float:
    """Bytes that tables may take of a device: see `memory_of` and
    `Machine.table_rows`.
    """
    return 0.6 * 0.85 * pod.device_memory


def report_files(pod: Pod, found: Found, now: Cost) -> None:
    f, share = found.folder, pod.pairs / pod.hosts
    some, seconds = f"from {FILES * ROWS:,} rows", executor._PART_SECONDS
    by_seconds = math.ceil(now.seconds["screening"] / seconds)
    rows = [
        calculated(
            "parts of a host",
            f"{math.ceil(share / now.part):,}",
            f"{now.part:,} rows: calls are not split",
        ),
        calculated(
            "  by the rule of rows alone",
            f"{math.ceil(share / executor._PART_ROWS):,}",
            f"{executor._PART_ROWS:,} rows",
        ),
        calculated(
            "  by the rule of seconds alone", f"{by_seconds:,}", f"{seconds:.0f} s"
        ),
        calculated("parts of all hosts", f"{now.files:,}"),
        measured(
            "manifest",
            size_of(f["manifest"]),
            f"{f['tasks']:,.0f} records as `Store` writes them",
        ),
        measured(
            "  opened and compared again", time_of(f["open"]), "local; every process"
        ),
        measured(
            "`pair` of one part",
            time_of(f["done"]),
            f"`Store.done`, {FILES} local parts of {ROWS:,} rows",
        ),
        calculated(
            "resume: bytes read by a host",
            size_of(now.written),
            "`Store._pairs` reads whole files",
        ),
        calculated(
            "  reading, one after the other",
            time_of(now.again["reading parts"]),
            f"{now.files:,} parts",
        ),
        calculated(
            "  leaving out what is done",
            time_of(now.again["leaving out what is done"]),
            f"`Plan.without`, from {PLANNED**2:,} pairs",
        ),
        calculated("`rank()` of everything", time_of(f["rank"] * pod.pairs), some),
        calculated("`summary()`", time_of(f["summary"] * pod.pairs), some),
    ]
    show("Files", rows)


def report_time(pod: Pod, found: Found, now: Cost) -> None:
    p, total, s = found.programs, sum(now.seconds.values()), now.seconds
    own, tasks, mixed = pod.targets / pod.hosts, pod.sources + pod.targets, found.mixed
    slow = pod.sources * p["source"] + own * p["target"]
    each = mixed.seconds
    how = {
        ("reading, hashing, splitting"): (
            f"one task after the other, {1e3 * pod.read_latency:g} ms each of the "
            "storage"
        ),
        (
            "choosing pairs, plan, digest"
        ): f"all pairs on every process; from {PLANNED**2:,}",
        "compiling": (
            f"{len(found.even.plan.buckets)} buckets, {p['compile']:.1f} s "
            "each on this CPU, and two profiles"
        ),
        "profiles": (
            f"{pod.sources + own:,.0f}, {pod.profile_ms:g} ms each (assumed), "
            "on one device; tasks read again"
        ),
        "screening": (
            f"{pod.rate:,.0f} pairs/s a device (assumed); last calls are filled up"
        ),
        (
            "waiting for driver or writer"
        ): "if they are slower than the devices, see below",
        (
            "best of each target, their plan"
        ): "`best_of` and `Plan.only`, of all pairs on every process",
        "refining": (
            f"{pod.refine_rate:g} pairs/s a device, {pod.certify_ms:g} ms a "
            "certificate on the host (assumed)"
        ),
    }
    rows = [
        calculated(name, time_of(seconds), how[name]) for name, seconds in s.items()
    ]
    rows += [
        calculated(
            "all", time_of(total), f"screening is {s['screening'] / total:.0%} of it"
        ),
        calculated(
            "reading without the storage",
            time_of(tasks * found.read["record"]),
            f"{1e3 * found.read['record']:.1f} ms a task, measured",
        ),
        measured(
            "a profile on this CPU",
            f"{1e3 * p['source']:.0f}, {1e3 * p['target']:.0f} ms",
            "source, target; one thread",
        ),
        calculated("  all of a host at this speed", time_of(slow)),
        calculated(
            "`_impossible`, in the plan",
            time_of(pod.pairs * found.even.seconds["impossible"]),
            (
                f"from {PLANNED**2:,} pairs; {found.even.impossible:.0f} B a pair at "
                "its peak"
            ),
        ),
        calculated(
            "plan of mixed tasks",
            time_of(pod.pairs * (each["pairs"] + each["plan"] + each["digest"])),
            (
                "three sizes times three numbers of classes: "
                f"{len(mixed.plan.buckets)} buckets"
            ),
        ),
        calculated(
            "  compiling its buckets",
            time_of(len(mixed.plan.buckets) * p["compile"]),
            "on every process",
        ),
        calculated(
            "who knows what, shared items",
            time_of(found.pool["shared"] * (pod.sources + pod.targets) / 2 / POOL),
            (
                f"`Shared`, in each stage; from {POOL} + {POOL} tasks out of "
                f"{found.pool['items']:,.0f} items"
            ),
        ),
    ]
    show("Time of each host", rows)
    r = found.rows.seconds

    def per(seconds):
        return f"{1 / seconds:,.0f}"

    rows = [
        (
            "devices of a host",
            f"{pod.host_rate:,.0f}",
            ASSUMED,
            f"{pod.devices} at {pod.rate:,.0f} pairs/s",
        ),
        measured(
            "driver: `launch`",
            per(r["launch"]),
            "with the copy of the masks to a device",
        ),
        measured(
            "  tasks that share items",
            per(found.pool["launch"]),
            f"{found.pool['known']:.0%} of these pairs do",
        ),
        measured(
            "driver: `finish`",
            per(r["finish"]),
            f"of which `row_names` {per(r['names'])}",
        ),
        measured("writer: `_together`", per(r["join"]), "of two chunks"),
        measured("writer: `_parquet`", per(r["encode"]), f"{ROWS:,} rows"),
        measured(
            "driver and writer at once",
            f"{found.folder['through']:,.0f}",
            "as if devices took no time; local folder",
        ),
        calculated(
            "writer with the storage",
            f"{now.writer:,.0f}",
            f"parts of {now.part:,} rows, 4 operations each",
        ),
    ]
    show("Rows a second of one process", rows)


def report_shares(pod: Pod, found: Found, now: Cost) -> None:
    s, tasks, share = found.shares, pod.sources + pod.targets, pod.pairs / pod.hosts
    screening = now.seconds["screening"]
    # Taking a share is a write and a read.
    wait = pod.write_latency + pod.read_latency
    rows = [
        measured(
            "largest share over the mean",
            f"{s.pairs:.4f}",
            f"`Plan.share`, the {s.buckets} buckets of mixed tasks",
        ),
        measured(
            "  work", f"{s.work:.4f}", "weighted by items of the target times classes"
        ),
        calculated(
            "computed over wanted pairs",
            f"{s.filled[0]:.3f}",
            f"last calls are filled up; worst host {s.filled[1]:.3f}",
        ),
        measured(
            "profiles made by a host",
            f"{s.profiles * tasks:,.0f}",
            (
                f"scaled; of {s.fewest * tasks:,.0f} tasks. Each made once on the pod: "
                f"{tasks / pod.hosts:,.0f}"
            ),
        ),
        calculated(
            "  kept on each device",
            size_of(s.kept),
            "`Tables` keeps one table of each role and shape",
        ),
    ]
    for slow, words in (
        (False, f"speeds vary by {pod.spread:.0%}"),
        (True, "  one host at half speed, too"),
    ):
        static, dynamic = stragglers(pod, slow, wait / (share / pod.host_rate))

        def figure(v):
            return f"{np.median(v):.2f}, {np.quantile(v, 0.95):.2f}"

        rows += [
            calculated(
                words,
                figure(static),
                (
                    f"last host: median, 95 % of {TRIALS} trials; 1 if all are equally "
                    "fast"
                ),
            ),
            calculated(
                f"    {pod.claims} shares each, claimed",
                figure(dynamic),
                (
                    f"{share / pod.claims:,.0f} pairs a claim, {1e3 * wait:.0f} ms of "
                    "the storage each"
                ),
            ),
        ]
    units = min(call_size(round(share), pod.devices), round(share))
    # One call runs, one becomes rows, one part is written; four more may wait where the
    # writer is behind.
    least, most = (
        min(n, round(share)) for n in (2 * units + now.part, 6 * units + 2 * now.part)
    )
    rows += [
        calculated(
            "a host is lost: rows lost",
            f"{least:,} to {most:,}",
            (
                f"{time_of(least / pod.host_rate)} to {time_of(most / pod.host_rate)} "
                "of its devices, by the writer's backlog"
            ),
        ),
        calculated(
            "  undone, if lost halfway",
            f"{share / 2:,.0f}",
            (
                f"nobody takes over; {time_of(screening / 2 / pod.hosts)} when all "
                "share it after the next call"
            ),
        ),
        calculated(
            "  before that call computes",
            time_of(sum(now.again.values())),
            "reading, planning, profiles, parts again",
        ),
    ]
    show("Shares", rows)


def report_growth(pod: Pod, found: Found) -> None:
    pods = [pod.grown(times) for times in GROWTH]
    costs = [cost(p, found, times) for p, times in zip(pods, GROWTH, strict=True)]

    def line(
        name: str,
        words: Callable[[Any], str],
        of: Callable[[Pod, Cost], Any],
        kind: str = CALCULATED,
    ):
        return (
            name,
            *(words(of(p, c)) for p, c in zip(pods, costs, strict=True)),
            kind,
        )

    def number(v):
        return f"{v:,.0f}"

    def known(p, c):
        return found.pool["shared"] * (p.sources + p.targets) / 2 / POOL

    rows = [
        line(
            "sources, targets",
            lambda v: f"{v[0]:,} x {v[1]:,}",
            lambda p, c: (p.sources, p.targets),
            ASSUMED,
        ),
        *(
            line(name, time_of, lambda p, c, n=name: c.seconds[n])
            for name in costs[0].seconds
        ),
        line("all of it", time_of, lambda p, c: sum(c.seconds.values())),
        *(
            line(f"host memory: {name}", size_of, lambda p, c, n=name: c.memory[n])
            for name in costs[0].memory
        ),
        *(
            line(f"device memory: {name}", size_of, lambda p, c, n=name: c.device[n])
            for name in costs[0].device
        ),
        line("who knows what, tasks that share items", time_of, known),
        line("manifest", size_of, lambda p, c: c.manifest),
        line("files", number, lambda p, c: c.files),
        line(
            "a row in a part",
            "{:.1f} B".format,
            lambda p, c: c.written / p.pairs,
            MEASURED,
        ),
        line("written", size_of, lambda p, c: c.written),
        line(
            "writer with the storage, rows/s of a process",
            number,
            lambda p, c: c.writer,
        ),
        line(
            "resume: reading parts, every process",
            time_of,
            lambda p, c: c.again["reading parts"],
        ),
        line(
            "resume: leaving out what is done",
            time_of,
            lambda p, c: c.again["leaving out what is done"],
        ),
        line(
            "`summary()` of the result",
            time_of,
            lambda p, c: found.folder["summary"] * p.pairs,
        ),
    ]
    head = ("what", *(f"{p.pairs:.1e} pairs".replace("e+0", "e") for p in pods), "from")
    show(
        (
            "Growth on the same pod; times and memory of plans in proportion to "
            f"{PLANNED**2:,} pairs"
        ),
        rows,
        head,
    )
    print("\nWhat breaks first, by share of a host's time, and limits that are crossed")
    for p, c in zip(pods, costs, strict=True):
        total = sum(c.seconds.values())
        worst = sorted(((s, name) for name, s in c.seconds.items()), reverse=True)
        print(f"  {p.pairs:,} pairs, {time_of(total)}:")
        print(
            "    "
            + "; ".join(
                f"{name} {s / total:.0%}" for s, name in worst if s > 0.005 * total
            )
        )
        while_planned = sum(
            c.memory[name]
            for name in ("plan: peak", "records", "tasks given in memory")
        )
        broken = []
        if while_planned > p.host_memory:
            broken.append(
                f"host memory while planning, {size_of(while_planned)} of "
                f"{size_of(p.host_memory)}"
            )
        broken += [
            f"tables for {name}, {size_of(v)} a device"
            for name, v in c.device.items()
            if v > table_room(p)
        ]
        held_up = min(c.writer, found.folder["through"]) / p.devices
        if held_up < p.rate:
            broken.append(
                f"rows: driver and writer keep up with {held_up:,.0f} pairs/s a device"
            )
        print(f"    over a limit: {'; '.join(broken) or 'nothing'}")
        if held_up >= p.rate:
            print(
                f"    driver and writer keep up with devices of up to {held_up:,.0f} "
                "pairs/s each"
            )


def options() -> Pod:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(name: str, default: Any, text: str) -> None:
        parser.add_argument(
            name, type=type(default), default=default, help=f"{text} ({default})"
        )

    add("--sources", 3163, "sources")
    add("--targets", 3163, "targets")
    add("--items", 500, "items of every task")
    add("--dim", 256, "features")
    add("--classes", 10, "classes of every task")
    add("--hosts", 8, "processes, one on each host")
    add("--devices-per-host", 4, "accelerators of each")
    add("--rate", 20_000.0, "pairs a second that a device screens")
    add("--refine-rate", 100.0, "pairs a second that a device learns")
    add("--profile-ms", 10.0, "a task's profile on a device")
    add("--certify-ms", 15.0, "a refined pair's certificate on the host's CPU")
    add("--spread", 0.1, "relative standard deviation of the hosts' speeds")
    add("--storage-write-ms", 50.0, "one write on the storage")
    add("--storage-read-ms", 20.0, "until the storage begins to answer")
    add("--bandwidth", 500.0, "MB a second between a host and the storage")
    add("--device-memory", 16.0, "GB")
    add("--host-memory", 128.0, "GB")
    add("--refine", 3, "sources of each target that are refined")
    add("--claims", 16, "shares of a host, if they were claimed")
    a = parser.parse_args()
    return Pod(
        sources=a.sources,
        targets=a.targets,
        items=a.items,
        dim=a.dim,
        classes=a.classes,
        hosts=a.hosts,
        devices=a.devices_per_host,
        rate=a.rate,
        refine_rate=a.refine_rate,
        profile_ms=a.profile_ms,
        certify_ms=a.certify_ms,
        spread=a.spread,
        write_latency=a.storage_write_ms / 1e3,
        read_latency=a.storage_read_ms / 1e3,
        bandwidth=a.bandwidth * 1e6,
        device_memory=a.device_memory * 1e9,
        host_memory=a.host_memory * 1e9,
        refined=a.refine,
        claims=a.claims,
    )


def main() -> None:
    pod = options()
    begun = time.perf_counter()
    found = measure(pod)
    now = cost(pod, found, 1)
    print(
        f"{pod.sources:,} x {pod.targets:,} = {pod.pairs:,} pairs, n = {pod.items}, d "
        f"= {pod.dim}, K = {pod.classes}; "
        f"{pod.hosts} hosts with {pod.devices} devices of "
        f"{size_of(pod.device_memory)}\n"
        f"assumed: {pod.rate:,.0f} pairs/s a device, {pod.profile_ms:g} ms a profile, "
        f"{pod.refine_rate:g} refined "
        f"pairs/s a device, {pod.certify_ms:g} ms a certificate, "
        f"{1e3 * pod.write_latency:g} ms\n"
        f"  a write and {1e3 * pod.read_latency:g} ms a read of the storage, "
        f"{size_of(pod.bandwidth)}/s and "
        f"{size_of(pod.host_memory)} of memory a host, speeds vary by "
        f"{pod.spread:.0%}\n"
        f"measured in {time.perf_counter() - begun:.0f} s on this machine's CPU"
    )
    for report in (report_bytes, report_files, report_time, report_shares):
        report(pod, found, now)
    report_growth(pod, found)


if __name__ == "__main__":
    main()
