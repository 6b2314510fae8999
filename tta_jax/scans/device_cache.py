"""Profiles on the devices: stacked, each task once, gathered by index; as many at a
time as memory holds.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from tta_jax._internal.compilation import inherit_jax_config
from tta_jax._internal.padding import geometric_bucket
from tta_jax._internal.text import one_line
from tta_jax.config import Config
from tta_jax.fitting.fit_pair import PairSource
from tta_jax.fitting.prepare import TaskShape, inner_seed
from tta_jax.scans.plan import Bucket
from tta_jax.scans.profiles import (
    source_input,
    source_profile,
    source_struct_of,
    target_input,
    target_profile,
    target_struct_of,
)
from tta_jax.scans.refinement import HostSamples, fit_refined_source
from tta_jax.scans.task_records import TaskRecord
from tta_jax.tasks.splits import Seed


class ProfileTable(NamedTuple):
    """Stacked profiles of some tasks of one shape.

    Attributes:
      tree: a profile whose arrays have leading axes (tasks, parts), on every device.
      row: `(records,)` int32, the row of every task, -1 for those that are not here.
      broken: position -> why there is no profile.
      host: what rows need of it: `probe_loss` and `probe_accuracy` of screened targets,
        `samples` for certificates, `(tasks,)`.
    """

    tree: Any
    row: np.ndarray
    broken: dict[int, str]
    host: dict[str, np.ndarray]


def usable_memory(devices: Sequence[Any]) -> int:
    """Bytes that a scan may use on each device: what is free, less a margin."""
    stats = devices[0].memory_stats() if devices[0].platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(0.85 * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        free = 4 << 30
    return max(int(0.5 * free) // len(devices), 1 << 28)


P = jax.sharding.PartitionSpec
TABLE_SHARE = 0.6  # of the memory that a scan may use


_PROGRAMS: dict[Any, tuple[Callable, int]] = {}


class DeviceMesh:
    """The devices of this process, what they hold, and what has been compiled."""

    def __init__(self, memory: int, devices: Sequence[Any]):
        self.mesh = jax.sharding.Mesh(np.asarray(devices), ("pairs",))
        self.memory, self.devices = memory, len(devices)
        self.everywhere = jax.sharding.NamedSharding(self.mesh, P())
        self.split = jax.sharding.NamedSharding(self.mesh, P("pairs"))
        self.cpu = devices[0].platform == "cpu"
        self.compilations = 0

    def compiled(
        self, function: Any, shapes: tuple[Any, ...], **static: Any
    ) -> tuple[Callable, int]:
        """A program for these shapes, and the bytes it needs on a device besides;
        another scan of the same shapes finds it.
        """
        flat, structure = jax.tree.flatten(shapes)
        places = tuple((v.shape, v.dtype, v.sharding) for v in flat)
        key = (function, structure, places, tuple(sorted(static.items(), key=str)))
        if key not in _PROGRAMS:
            call = function.lower(*shapes, **static).compile()
            used = call.memory_analysis()
            _PROGRAMS[key] = call, int(getattr(used, "temp_size_in_bytes", 0) or 0)
            self.compilations += 1
        return _PROGRAMS[key]

    def sharding(self, shape: tuple[int, ...], first: int, spread: bool) -> Any:
        """Where an array lies: whole on every device, or spread along its longest axis
        from `first` on that can be divided.
        """
        axes = [
            k
            for k in range(first, len(shape))
            if spread and shape[k] and shape[k] % self.devices == 0
        ]
        if not axes:
            return self.everywhere
        longest = max(axes, key=lambda k: shape[k])
        return jax.sharding.NamedSharding(self.mesh, P(*[None] * longest, "pairs"))

    def table_rows(
        self, bucket: Bucket, bytes_of: Callable[[str, TaskShape], int]
    ) -> tuple[int, int, bool]:
        """How many sources and targets of a bucket are on a device at a time, and
        whether one pair has to be spread over all.
        """
        sources, targets = len(np.unique(bucket.i)), len(np.unique(bucket.j))
        one_s, one_t = (
            bytes_of("source", bucket.source),
            bytes_of("target", bucket.target),
        )
        budget = int(TABLE_SHARE * self.memory)
        if one_s + one_t > budget and self.devices > 1:
            return 1, 1, True
        # Rounded up, so that scans of a few tasks more or less share their programs.
        most_s, most_t = (max(8, geometric_bucket(n, 2)) for n in (sources, targets))
        if most_s * one_s + most_t * one_t <= budget:
            return most_s, most_t, False
        # Sources stay while targets pass by: where all sources fit, nothing is made
        # twice.
        held = min(sources, max(1, int(0.7 * budget) // one_s))
        return held, min(targets, max(1, (budget - held * one_s) // one_t)), False

    def shrink(self, smallest: bool) -> None:
        """Ask for less after a device ran out of memory.

        Raises:
          MemoryError: where nothing is left to halve.
        """
        if smallest:
            raise MemoryError(
                "scan: a single pair does not fit into memory; use fewer items, or "
                "devices with more memory"
            )
        self.memory //= 2


class ProfileKind(NamedTuple):
    """How a stage prepares a role's tasks.

    Attributes:
      make_input: the host's share.
      device: the device's, compiled; None for nothing.
      together: what the table holds, from both; on the host.
      host: what rows need of it on the host.
    """

    make_input: Callable[..., Any]
    device: Callable[[Any], Any] | None
    together: Callable[[Any, Any], Any]
    host: Callable[[list[Any], list[Any]], dict[str, np.ndarray]]


def _probes(_: list[Any], profiles: list[Any]) -> dict[str, np.ndarray]:
    weight = np.stack([np.sum(p.held_mask, axis=1) for p in profiles]).astype(float)
    weight /= np.maximum(weight.sum(1, keepdims=True), 1)
    return {
        name: (weight * np.stack([getattr(p, name) for p in profiles])).sum(1)
        for name in ("probe_loss", "probe_accuracy")
    }


def _samples(inputs: list[Any], _: list[Any]) -> dict[str, np.ndarray]:
    held = np.empty(len(inputs), object)
    held[:] = [[HostSamples.of(x) for x in parts] for parts in inputs]
    return {"samples": held}


PROFILE_KINDS = {
    ("screen", "source"): ProfileKind(
        make_input=source_input,
        device=source_profile,
        together=lambda _, profile: profile,
        host=lambda *_: {},
    ),
    ("screen", "target"): ProfileKind(
        make_input=target_input,
        device=target_profile,
        together=lambda _, profile: profile,
        host=_probes,
    ),
    ("refine", "source"): ProfileKind(
        make_input=source_input,
        device=fit_refined_source,
        together=lambda x, fit: PairSource.of(x.arrays, fit),
        host=_samples,
    ),
    ("refine", "target"): ProfileKind(
        make_input=target_input, device=None, together=lambda x, _: x, host=_samples
    ),
}


# One function for all tables, so that what one has compiled the next one finds.
_jitted = functools.cache(jax.jit)


@functools.cache  # tracing takes longer than all else that lays a bucket out
def _profile_shape(stage: str, role: str, shape: TaskShape, dtype: Any) -> Any:
    kind = PROFILE_KINDS[stage, role]
    struct = source_struct_of if role == "source" else target_struct_of
    empty = struct(shape, dtype)
    profile = jax.eval_shape(kind.device, empty) if kind.device else None
    zeros = jax.tree.map(lambda v: np.zeros(v.shape, v.dtype), empty)
    made = kind.together(zeros, profile)
    return jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), made)


class Stopped(Exception):
    """Tables are not made any more, since a stop was asked for."""


class ProfileCache:
    """Tables by role, shape and number, made when they are first needed; the last one
    of each role and shape is kept.

    Where they would take more than their share of memory, those go that have not been
    used for longest.
    """

    def __init__(
        self,
        stage: str,
        config: Config,
        seed: Seed,
        machine: DeviceMesh,
        dtype: Any,
        tell: Callable[[str], None] = lambda _: None,
        stopped: Callable[[], bool] = lambda: False,
    ):
        self._stage, self._config, self._seed, self._dtype = (
            stage,
            config,
            seed,
            np.dtype(dtype),
        )
        self._machine, self._tell, self._stopped = machine, tell, stopped
        self._parts = max(1, config.folds)
        self._turn = threading.Lock()  # one program at a time
        self._kept: dict[
            tuple[str, TaskShape], tuple[tuple[int, ...], ProfileTable]
        ] = {}

    def get(
        self,
        role: str,
        shape: TaskShape,
        records: Sequence[TaskRecord],
        places: Sequence[int],
        rows: int,
        spread: bool = False,
    ) -> ProfileTable:
        """The table of the tasks at `places`, padded to so many rows; on every device,
        or spread over all of them.

        Raises:
          Stopped: if a stop was asked for before it was whole.
        """
        key, wanted = (role, shape), tuple(places)
        before = self._kept.pop(key, None)
        if before is not None and before[0] == wanted:
            self._kept[key] = before  # the last one to go
            return before[1]
        del before  # free its memory first
        new = rows * self.bytes_of(role, shape)

        def held():
            return sum(
                v.nbytes
                for _, table in self._kept.values()
                for v in jax.tree.leaves(table.tree)
            )

        while self._kept and held() + new > TABLE_SHARE * self._machine.memory:
            self._kept.pop(next(iter(self._kept)))
        table = self._make(role, shape, records, wanted, rows, spread)
        self._kept[key] = (wanted, table)
        return table

    def bytes_of(self, role: str, shape: TaskShape) -> int:
        """Bytes of one task's profile on a device."""
        tree = _profile_shape(self._stage, role, shape, self._dtype)
        return self._parts * sum(
            int(np.prod(v.shape)) * v.dtype.itemsize for v in jax.tree.leaves(tree)
        )

    def empty(self, role: str, shape: TaskShape, rows: int, spread: bool) -> Any:
        """Shapes and sharding of a table, for compiling."""

        def place(size):
            return self._machine.sharding(size, 2, spread)

        def stacked(size, dtype):
            return jax.ShapeDtypeStruct(size, dtype, sharding=place(size))

        tree = _profile_shape(self._stage, role, shape, self._dtype)
        return jax.tree.map(
            lambda v: stacked((rows, self._parts, *v.shape), v.dtype), tree
        )

    def forget(self) -> None:
        self._kept.clear()

    def _make(
        self,
        role: str,
        shape: TaskShape,
        records: Sequence[TaskRecord],
        places: tuple[int, ...],
        rows: int,
        spread: bool,
    ) -> ProfileTable:
        made: dict[int, tuple[Any, Any]] = {}
        broken: dict[int, str] = {}
        # Standardising the next task and solving for the last one go side by side.
        with ThreadPoolExecutor(2) as pool:
            work = {
                k: pool.submit(
                    inherit_jax_config(self._profile), role, shape, records[k], spread
                )
                for k in places
            }
            try:
                for k, future in work.items():
                    if self._stopped():
                        raise Stopped
                    try:
                        made[k] = future.result()
                    except (ValueError, OSError) as error:
                        broken[k] = f"{role}: {one_line(error)}"
                    self._tell(role)
            finally:
                for future in work.values():
                    future.cancel()
        row = np.full(len(records), -1, np.int32)
        row[list(made)] = np.arange(len(made))
        if not made:
            return ProfileTable(None, row, broken, {})
        inputs, profiles = (list(column) for column in zip(*made.values(), strict=True))

        def stack(*leaves):
            out = np.zeros((rows, *leaves[0].shape), leaves[0].dtype)
            for number, leaf in enumerate(leaves):
                out[number] = leaf
            return jax.device_put(out, self._machine.sharding(out.shape, 2, spread))

        host = PROFILE_KINDS[self._stage, role].host(inputs, profiles)
        return ProfileTable(jax.tree.map(stack, *profiles), row, broken, host)

    def _profile(
        self, role: str, shape: TaskShape, record: TaskRecord, spread: bool
    ) -> tuple[list[Any], Any]:
        """Inputs by part, and the profile of one task, on the host, with a leading axis
        of parts.
        """
        kind, task, inputs = PROFILE_KINDS[self._stage, role], record.task(), []
        if task.features.dtype != self._dtype:
            task = dataclasses.replace(
                task, features=np.asarray(task.features, self._dtype)
            )
        for number, part in enumerate(record.parts):
            seed = inner_seed(self._seed, record.content, number)
            extra = (record.head,) if role == "source" else ()
            inputs.append(
                kind.make_input(task, part, shape, self._config, *extra, seed)
            )
        found: list[Any] = [None] * len(inputs)
        if kind.device is not None:
            with self._turn:
                work = _jitted(kind.device)
                found = jax.device_get(
                    [work(self._placed(x) if spread else x) for x in inputs]
                )
        made = [
            kind.together(x, profile) for x, profile in zip(inputs, found, strict=True)
        ]
        profile = jax.tree.map(lambda *v: np.stack(v), *made)
        return inputs if kind.host is _samples else [], profile

    def _placed(self, x: Any) -> Any:
        """An input too large for one device, spread over all: the work on it is divided
        by the compiler.
        """
        return jax.tree.map(
            lambda v: jax.device_put(v, self._machine.sharding(np.shape(v), 0, True)), x
        )
