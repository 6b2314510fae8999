"""Screen chunks of pairs on the devices."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from tta_jax._internal.padding import geometric_bucket
from tta_jax._internal.typing import Array
from tta_jax.scans.device_cache import P, ProfileTable
from tta_jax.scans.executor import Program
from tta_jax.scans.plan import Bucket
from tta_jax.scans.screening import PairFigures, Screened, screen_parts
from tta_jax.scans.stage import Stage, array_rows, chance_corrected_scores, checked_rows

# Pairs that go through `vmap` together. On CPUs what they need should stay in the
# cache; accelerators want long vectors.
_LANES_CPU, _LANES = 16, 512


class Screening(Stage):
    """The first stage; a unit is a pair."""

    name = "screen"
    blocks = 128

    def compile(self, bucket: Bucket, most_blocks: int) -> Program:
        machine = self._machine
        tables, rows, spread = self._laid_out(bucket)
        split, devices = (
            (machine.everywhere, 1) if spread else (machine.split, machine.devices)
        )
        lanes = _LANES_CPU if machine.cpu else _LANES
        while True:
            # As many blocks in every call as in the others: the last one is filled up
            # with copies.
            needed = -(-len(bucket) // (lanes * devices))
            calls = -(-needed // most_blocks)
            blocks = min(most_blocks, geometric_bucket(-(-needed // calls), 2))
            units = blocks * lanes * devices

            def of(*size, dtype):
                return jax.ShapeDtypeStruct((units, *size), dtype, sharding=split)

            index, keep = (
                of(dtype=np.int32),
                of(self._parts, bucket.target.held, dtype=np.bool_),
            )
            shapes = (*tables, index, index, keep)
            call, temporary = machine.compiled(
                screen_call, shapes, lanes=lanes, mesh=None if spread else machine.mesh
            )
            if temporary <= 0.3 * machine.memory or lanes == 1:
                return Program(
                    call, units, units, lanes, blocks, rows, spread, temporary
                )
            lanes //= 2

    def chunks(self, bucket: Bucket, program: Program) -> Iterator[Bucket]:
        for start in range(0, len(bucket), program.units):
            yield bucket.take(slice(start, start + program.units))

    def launch(
        self,
        program: Program,
        chunk: Bucket,
        source: ProfileTable,
        target: ProfileTable,
    ) -> Any:
        size = chunk.target.held
        keep = np.ones((program.units, self._parts, size), bool)
        known = np.zeros(len(chunk), np.int32)
        for j in np.unique(chunk.j):
            mine = np.flatnonzero(chunk.j == j)
            for part, i, items in self._setup.shared.rows(int(j)):
                at = int(np.searchsorted(chunk.i[mine], i))
                if at < len(mine) and chunk.i[mine[at]] == i:
                    keep[mine[at], part, items] = False
                    known[mine[at]] += len(items)

        def padded(values):
            return np.pad(values, (0, program.units - len(values)), mode="edge")

        i, j = padded(source.row[chunk.i]), padded(target.row[chunk.j])
        put = partial(self._put, program)
        out = program.call(source.tree, target.tree, put(i), put(j), put(keep))
        return (
            out,
            known,
            {name: values[j[: len(chunk)]] for name, values in target.host.items()},
        )

    def evaluate(self, chunk: Bucket, launched: Any) -> Any:
        del chunk
        return launched

    def finish(
        self, chunk: Bucket, evaluated: Any
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        out, known, probe = evaluated
        found: Screened = jax.tree.map(lambda v: v[: len(chunk)], jax.device_get(out))
        figures = found.figures
        wide = {
            name: np.asarray(getattr(figures, name), np.float64)
            for name in PairFigures._fields
            if name not in ("items", "assigned", "share")
        }
        entropy = wide["prior_entropy"]
        directed, theorem, star_entropy = (
            np.asarray(v, np.float64) for v in found.star
        )
        columns = (
            wide
            | probe
            | {
                "score": chance_corrected_scores(wide["target_loss"], entropy),
                "informative": wide["tight"] < entropy,
                "relatedness": chance_corrected_scores(directed, star_entropy),
                "star_directed": directed,
                "star_theorem": theorem,
                "items": figures.items,
                "shared_items": known,
            }
        )
        rows, good = checked_rows(self._plan, chunk.pair, columns)
        made = None
        if self._setup.arrays:
            made = array_rows(
                self._plan,
                chunk,
                np.asarray(figures.assigned),
                np.asarray(figures.share),
                good,
            )
        return rows, made


@partial(jax.jit, static_argnames=("lanes", "mesh"))
def screen_call(
    source: Any, target: Any, i: Array, j: Array, keep: Array, *, lanes: int, mesh: Any
) -> Screened:
    """`screen_parts` for the pairs `(i, j)` of two tables, blocks of `lanes` one after
    the other, on every device of the mesh.

    The block is what is compiled, so a pair's figures do not depend on how many others
    there are, or where they are computed.
    """

    def body(source, target, i, j, keep):
        def take(table, k):
            return jax.tree.map(lambda v: v[k], table)

        def one(a, b, kept):
            return screen_parts(take(source, a), take(target, b), kept)

        def blocks(v):
            return v.reshape(-1, lanes, *v.shape[1:])

        out = jax.lax.map(
            lambda x: jax.vmap(one)(*x), (blocks(i), blocks(j), blocks(keep))
        )
        return jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:]), out)

    if mesh is None:  # one pair is spread over all devices, which the compiler sees to
        return body(source, target, i, j, keep)
    here, split = P(), P("pairs")
    return jax.shard_map(
        body,
        mesh=mesh,
        in_specs=(here, here, split, split, split),
        out_specs=split,
        check_vma=False,
    )(source, target, i, j, keep)
