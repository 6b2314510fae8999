"""The work: programs compiled once for each bucket, chunks of pairs through them, rows
to the writer meanwhile.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from tta_jax.scans.device_cache import DeviceMesh, ProfileCache, ProfileTable, Stopped
from tta_jax.scans.parquet_store import STATUS, DictionaryColumn, Store
from tta_jax.scans.plan import Bucket, Plan

_PART_ROWS, _PART_SECONDS = (
    1 << 16,
    30.0,
)  # a part is written when it has so many rows, or is so old


class Progress(NamedTuple):
    """Where a scan stands; what `progress` is called with.

    Attributes:
      phase: "reading", "profiles", "screen" or "refine".
      done, total: tasks or pairs of this phase, of this process.
      failed: pairs that became a row with a reason, so far.
      seconds: since the phase began.
      note: something worth a line of its own; usually "".
    """

    phase: str
    done: int
    total: int
    failed: int = 0
    seconds: float = 0.0
    note: str = ""

    @property
    def rate(self) -> float:
        """Tasks or pairs a second."""
        return self.done / self.seconds if self.seconds > 0 else 0.0

    @property
    def left(self) -> float:
        """Seconds left, at the rate so far."""
        return (self.total - self.done) / self.rate if self.rate > 0 else float("inf")


class SignalHandler:
    """Set by the first Ctrl-C or SIGTERM; the second one interrupts at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # signals go to the main thread, which is the caller's
            return
        before = {}

        def hear(number, _):
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True

        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, hear)
        try:
            yield
        finally:
            for number, old in before.items():
                signal.signal(number, old)


# -- writing ---------------------------------------------------------------------------


class Writer:
    """A thread that gathers rows into parts and writes them while the next chunk is
    computed.
    """

    def __init__(self, store: Store, stage: str):
        self._store, self._stage = store, stage
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=1)
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._run, name="scan-writer", daemon=True
        )
        self.failed = 0

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._queue.put(None)
        self._thread.join()
        if self._error is not None and exc[0] is None:
            raise self._error

    def put(self, rows: dict[str, Any], arrays: dict[str, Any] | None = None) -> None:
        """Hand over some rows, columns by name."""
        if self._error is not None:
            raise self._error
        self.failed += int((rows["status"].codes != 0).sum())
        self._queue.put((rows, arrays))

    def _run(self) -> None:
        held: list[Any] = []
        since = time.monotonic()
        while True:
            try:
                item = self._queue.get(timeout=1.0)
            except queue.Empty:
                item = ()
            if item:
                held.append(item)
            count = sum(len(rows["pair"]) for rows, _ in held)
            if held and (
                item is None
                or count >= _PART_ROWS
                or time.monotonic() - since > _PART_SECONDS
            ):
                try:
                    if self._error is None:
                        self._store.write(self._stage, *_together(held))
                except (
                    MemoryError
                ):  # the host's, not a device's, which would be asked for less
                    self._error = OSError("out: memory ran out while rows were written")
                except BaseException as error:
                    self._error = error
                held = []
            if not held:
                since = time.monotonic()
            if item is None:
                return


def _together(held: list[Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    def join(parts: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            name: _joined([part.get(name) for part in parts], parts)
            for name in dict.fromkeys(n for p in parts for n in p)
        }

    arrays = [a for _, a in held if a is not None]
    return join([rows for rows, _ in held]), join(arrays) if arrays else None


def _joined(pieces: list[Any], parts: list[dict[str, Any]]) -> Any:
    """A column of several parts; null where a part has none."""
    counts = [len(part["pair"]) for part in parts]
    first = next(piece for piece in pieces if piece is not None)
    if isinstance(first, DictionaryColumn):

        def nothing(count):
            return DictionaryColumn(np.full(count, -1, np.int32), first.names)

        return DictionaryColumn.joined(
            [
                nothing(n) if p is None else p
                for p, n in zip(pieces, counts, strict=True)
            ]
        )
    if isinstance(first, np.ndarray) and all(piece is not None for piece in pieces):
        return np.concatenate(pieces)
    return [
        v
        for p, n in zip(pieces, counts, strict=True)
        for v in ([None] * n if p is None else p)
    ]


def failed_rows(plan: Plan, pair: np.ndarray, reasons: Sequence[str]) -> dict[str, Any]:
    """Rows for pairs that have no figures."""
    status = DictionaryColumn(np.ones(len(pair), np.int32), STATUS)
    return row_names(plan, pair) | {
        "status": status,
        "reason": DictionaryColumn.of(reasons),
    }


def row_names(plan: Plan, pair: np.ndarray) -> dict[str, Any]:
    """The columns that say which pair a row is."""
    i, j = plan.places(pair)
    encoders, (of_source, of_target) = plan.encoders
    encoder = np.where(of_source[i] > 0, of_source[i], of_target[j])
    return {
        "pair": pair,
        "encoder": DictionaryColumn(encoder, encoders),
        "source": DictionaryColumn(i.astype(np.int32), plan.source_names),
        "target": DictionaryColumn(j.astype(np.int32), plan.target_names),
    }


# -- devices ---------------------------------------------------------------------------


@dataclasses.dataclass
class Program:
    """A compiled bucket of a stage.

    Attributes:
      call: the compiled function.
      units: how many it takes at a time, over all devices; `pairs`: how many pairs
        these are at most.
      lanes, blocks: how they are cut on each device.
      rows: of the tables of sources and targets.
      spread: whether one pair is spread over all devices, since no single one holds it.
      temporary: bytes that it needs on a device besides the tables, as the compiler
        reports them.
    """

    call: Callable
    units: int
    pairs: int
    lanes: int
    blocks: int
    rows: tuple[int, int]
    spread: bool
    temporary: int


def out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the host, ran out of memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError)
        and "RESOURCE_EXHAUSTED" in str(error)
    )


# -- stages ----------------------------------------------------------------------------


class Stage(Protocol):
    """What the driver needs of a stage.

    A chunk is launched on the devices, evaluated, for which the host's CPU may run a
    program, and finished, which runs none. `one_at_a_time`: two programs at once gain
    nothing on these devices.
    """

    name: str
    blocks: int  # in one call, at most
    tables: ProfileCache
    one_at_a_time: bool

    def compile(self, bucket: Bucket, most_blocks: int) -> Program: ...

    def chunks(self, bucket: Bucket, program: Program) -> Iterator[Bucket]: ...

    def launch(
        self,
        program: Program,
        chunk: Bucket,
        source: ProfileTable,
        target: ProfileTable,
    ) -> Any: ...

    def evaluate(self, chunk: Bucket, launched: Any) -> Any: ...

    def finish(
        self, chunk: Bucket, evaluated: Any
    ) -> tuple[dict[str, Any], dict[str, Any] | None]: ...


# -- the driver ------------------------------------------------------------------------


def run_stage(
    stage: Stage,
    plan: Plan,
    writer: Writer,
    machine: DeviceMesh,
    stop: SignalHandler,
    tell: Callable[[int], None],
) -> None:
    """Every pair of the plan through a stage, or as many as there are until `stop` is
    asked for.
    """
    ids, reasons = plan.failed
    for start in range(0, len(ids), _PART_ROWS):
        part = slice(start, start + _PART_ROWS)
        writer.put(failed_rows(plan, ids[part], reasons[part]))
        tell(len(ids[part]))
    for bucket in plan.buckets:
        left, blocks = bucket, stage.blocks
        while len(left) and not stop.asked:
            program = stage.compile(left, blocks)
            finished: list[np.ndarray] = []
            try:
                for rows, arrays in _stream(stage, plan, left, program, stop):
                    writer.put(rows, arrays)
                    finished.append(rows["pair"])
                    tell(len(rows["pair"]))
            except Exception as error:
                if not out_of_memory(error):
                    raise
                machine.shrink(
                    program.pairs <= machine.devices and max(program.rows) == 1
                )
                stage.tables.forget()
                blocks = max(1, program.blocks // 2)
            else:
                break
            left = left.take(
                ~np.isin(left.pair, np.concatenate([np.zeros(0, np.int64), *finished]))
            )


def _stream(
    stage: Stage, plan: Plan, bucket: Bucket, program: Program, stop: SignalHandler
) -> Iterator[tuple[Any, Any]]:
    """Rows chunk by chunk; while one becomes rows, the next one is computed.

    On CPUs, where two programs at once take as long as one after the other, a chunk is
    evaluated before the next one is launched.
    """
    running: tuple[Bucket, Any] | None = None  # launched
    ended: tuple[Bucket, Any] | None = None  # and evaluated

    def settle() -> None:
        nonlocal running, ended
        if running is not None:
            chunk, launched = running
            running, ended = (
                None,
                (chunk, stage.evaluate(chunk, jax.block_until_ready(launched))),
            )

    for places_s, places_t, tile in _tiles(bucket, program.rows):
        if stop.asked:
            break
        if stage.one_at_a_time:
            settle()
        try:
            source = stage.tables.get(
                "source",
                bucket.source,
                plan.sources,
                places_s,
                program.rows[0],
                program.spread,
            )
            target = stage.tables.get(
                "target",
                bucket.target,
                plan.targets,
                places_t,
                program.rows[1],
                program.spread,
            )
        except Stopped:
            break
        good, broken = _whole(plan, tile, source, target)
        if broken is not None:
            yield broken, None
        for chunk in stage.chunks(good, program):
            if stop.asked:
                break
            if stage.one_at_a_time:
                settle()
            launched = stage.launch(program, chunk, source, target)
            settle()
            if ended is not None:
                yield stage.finish(*ended)
            running, ended = (chunk, launched), None
    settle()
    if ended is not None:
        yield stage.finish(*ended)


def _tiles(
    bucket: Bucket, rows: tuple[int, int]
) -> Iterator[tuple[list[int], list[int], Bucket]]:
    """As many sources and targets as are on the device at a time, and the pairs among
    them.
    """
    sources, targets = np.unique(bucket.i), np.unique(bucket.j)
    for a in range(0, len(sources), rows[0]):
        mine_s = sources[a : a + rows[0]]
        in_s = np.isin(bucket.i, mine_s)
        for b in range(0, len(targets), rows[1]):
            mine_t = targets[b : b + rows[1]]
            index = np.flatnonzero(in_s & np.isin(bucket.j, mine_t))
            if len(index):
                yield mine_s.tolist(), mine_t.tolist(), bucket.take(index)


def _whole(
    plan: Plan, tile: Bucket, source: ProfileTable, target: ProfileTable
) -> tuple[Bucket, dict[str, Any] | None]:
    """The pairs whose profiles could be made, and failed rows for the others."""
    if not source.broken and not target.broken:
        return tile, None
    reasons = [
        source.broken.get(int(i)) or target.broken.get(int(j))
        for i, j in zip(tile.i, tile.j, strict=True)
    ]
    bad = np.array([reason is not None for reason in reasons])
    if not bad.any():
        return tile, None
    return tile.take(~bad), failed_rows(
        plan, tile.pair[bad], [reason for reason in reasons if reason is not None]
    )


class StageTiming(NamedTuple):
    """What one pair of a bucket took: seconds to compile, for a source's and a target's
    profile, for a pair; bytes on a device.
    """

    compile: float
    source: float
    target: float
    pair: float
    bytes: float


def measure(stage: Stage, plan: Plan, bucket: Bucket) -> StageTiming:
    """Compile a bucket and time it on its first pair, as often as a call takes
    pairs.
    """

    def timed(work: Callable[[], Any]) -> tuple[Any, float]:
        begun = time.perf_counter()
        out = work()
        return out, time.perf_counter() - begun

    program, compiling = timed(lambda: stage.compile(bucket, stage.blocks))
    tables, seconds = [], []
    for role, shape, records, place, rows in (
        ("source", bucket.source, plan.sources, int(bucket.i[0]), program.rows[0]),
        ("target", bucket.target, plan.targets, int(bucket.j[0]), program.rows[1]),
    ):
        make = partial(
            stage.tables.get, role, shape, records, [place], rows, program.spread
        )
        _, first = timed(make)
        stage.tables.forget()
        table, again = timed(make)
        compiling += max(0.0, first - again)
        tables.append(table)
        seconds.append(again)
    held = (
        sum(v.nbytes for table in tables for v in jax.tree.leaves(table.tree))
        + program.temporary
    )
    if any(table.tree is None for table in tables):
        return StageTiming(compiling, seconds[0], seconds[1], float("nan"), float(held))
    sample = next(
        iter(
            stage.chunks(
                bucket.take(np.zeros(min(len(bucket), program.pairs), int)), program
            )
        )
    )

    def launch():
        return jax.block_until_ready(stage.launch(program, sample, *tables))

    def run():
        return stage.finish(sample, stage.evaluate(sample, launch()))

    _, first = timed(run)
    _, again = timed(run)
    stage.tables.forget()
    return StageTiming(
        compiling + max(0.0, first - again),
        seconds[0],
        seconds[1],
        again / len(sample),
        float(held),
    )
