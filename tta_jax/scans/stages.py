"""The two stages: how a bucket is compiled, a chunk launched, and what comes back
turned into rows.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tta_jax import intervals
from tta_jax.bound import RUNGS, Bound
from tta_jax.certificate import chain_holds
from tta_jax.config import Config
from tta_jax.scans.plan import Bucket, Plan, Shared
from tta_jax.scans.refine import (
    Certified,
    Evaluated,
    Learnt,
    certificate_input,
    certify_pairs,
    learn_pairs,
)
from tta_jax.scans.run import Program, row_names
from tta_jax.scans.screen import Screened, screen_parts
from tta_jax.scans.store import STATUS, Words
from tta_jax.scans.tables import Machine, P, Table, Tables
from tta_jax.task import Seed, child, ladder

Array = jax.Array

# Pairs that go through `vmap` together. On CPUs what they need should stay in the
# cache; accelerators want long vectors.
_LANES_CPU, _LANES = 16, 512
_SOURCES = 8  # of a target that are refined together, at most
_UNITS_CPU, _UNITS = 1, 16  # targets that are refined side by side
# pairs whose certificates are computed in one call: no more of their float64 copies are
# held at once
_TOGETHER = 4
ALL_LEARNED = "the source has learned from every held-out item of the target"
_REASONS = (
    ALL_LEARNED,
    "its figures are not finite: features hold NaN or infinity, or are far too large",
)
_WORDS = ("mean source logits", "equidistant")
_STOPPED = (
    "kept the closed-form start",
    "refined the closed-form start",
    "closed-form start (steps=0)",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """What both stages of a scan are told: the plan, the devices, and how pairs are
    evaluated.

    `refine`: sources of each target that are refined, at most.
    """

    plan: Plan
    machine: Machine
    config: Config
    seed: Seed
    refine: int
    arrays: bool

    @functools.cached_property
    def shared(self) -> Shared:
        """Who knows which items."""
        return Shared(self.plan.sources, self.plan.targets)

    @property
    def parts(self) -> int:
        """Parts of the hold-out that every pair is evaluated on."""
        return max(1, self.config.folds)

    @property
    def dtype(self) -> Any:
        """Of the features: float32, or float64 where jax computes with it and a task
        was made for it.
        """
        return np.dtype(
            np.float64
            if any(c.wide for c in (*self.plan.sources, *self.plan.targets))
            else np.float32
        )


class _Stage:
    """What both stages have."""

    name: str

    def __init__(
        self,
        setup: Setup,
        tell: Callable[[str], None],
        stopped: Callable[[], bool] = lambda: False,
    ):
        self._setup, self._config, self._seed = setup, setup.config, setup.seed
        self._plan, self._machine, self._parts = setup.plan, setup.machine, setup.parts
        self.one_at_a_time = setup.machine.cpu
        self.tables = Tables(
            self.name,
            setup.config,
            setup.seed,
            setup.machine,
            setup.dtype,
            tell,
            stopped,
        )

    def _laid_out(self, bucket: Bucket) -> tuple[list[Any], tuple[int, int], bool]:
        """Shapes of the tables of sources and targets, their rows, and whether one pair
        is spread over all devices.
        """
        sources, targets, spread = self._machine.table_rows(
            bucket, self.tables.bytes_of
        )
        source = self.tables.empty("source", bucket.source, sources, spread)
        target = self.tables.empty("target", bucket.target, targets, spread)
        return [source, target], (sources, targets), spread

    def _put(self, program: Program, values: np.ndarray) -> Array:
        return jax.device_put(
            values, self._machine.everywhere if program.spread else self._machine.split
        )


class Screening(_Stage):
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
            blocks = min(most_blocks, ladder(-(-needed // calls), 2))
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
        self, program: Program, chunk: Bucket, source: Table, target: Table
    ) -> Any:
        room = chunk.target.held
        keep = np.ones((program.units, self._parts, room), bool)
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
        wide = {
            name: np.asarray(getattr(found, name), np.float64)
            for name in Screened._fields
            if name not in ("items", "assigned", "share")
        }
        entropy = wide["prior_entropy"]
        columns = (
            wide
            | probe
            | {
                "score": scores(wide["target_loss"], entropy),
                "transformed_source_loss": wide["reweighted_source_loss"]
                + wide["label_mismatch"],
                "informative": wide["tight"] < entropy,
                "items": found.items,
                "shared_items": known,
            }
        )
        rows, good = checked_rows(self._plan, chunk.pair, columns)
        made = None
        if self._setup.arrays:
            made = array_rows(self._plan, chunk, found.assigned, found.share, good)
        return rows, made


def scores(loss: np.ndarray, entropy: np.ndarray) -> np.ndarray:
    """`1 - target loss / H(p_T)`; NaN where `H(p_T) = 0`."""
    return np.where(entropy > 0, 1 - loss / np.where(entropy > 0, entropy, 1.0), np.nan)


def checked_rows(
    plan: Plan, pair: np.ndarray, columns: dict[str, Any]
) -> tuple[dict[str, Any], np.ndarray]:
    """Rows with a status: a pair whose figures are not finite, or that has nothing to
    be judged on, fails and has none.
    """
    finite = np.isfinite(columns["target_loss"]) & np.isfinite(columns["tight"])
    empty = columns["items"] == 0
    good = finite & ~empty
    whole = ("items", "shared_items", "informative", "holds")

    def blank(name, v):
        return (
            np.where(good, v, np.nan)
            if name not in whole and isinstance(v, np.ndarray)
            else v
        )

    rows = row_names(plan, pair) | {name: blank(name, v) for name, v in columns.items()}
    rows["status"] = Words((~good).astype(np.int32), STATUS)
    rows["reason"] = Words(
        np.where(good, -1, np.where(empty, 0, 1)).astype(np.int32), _REASONS
    )
    return rows, good


def array_rows(
    plan: Plan, chunk: Bucket, assigned: np.ndarray, share: np.ndarray, good: np.ndarray
) -> dict[str, Any]:
    """Assignment, class prior and label mixing as lists."""
    made: dict[str, Any] = {"pair": [], "assigned": [], "prior": [], "label_mixing": []}
    for number in np.flatnonzero(good):
        classes_s, classes_t = (
            plan.sources[chunk.i[number]].classes,
            plan.targets[chunk.j[number]].classes,
        )
        source_of, p = (
            assigned[number, :classes_t],
            share[number, :classes_t].astype(float),
        )
        joint = np.zeros((classes_t, classes_s))
        joint[np.arange(classes_t), source_of] = p
        prior = joint.sum(0)
        mixing = np.where(prior > 0, joint / np.where(prior > 0, prior, 1), p[:, None])
        row = (
            int(chunk.pair[number]),
            source_of.tolist(),
            prior.tolist(),
            mixing.tolist(),
        )
        for name, value in zip(made, row, strict=True):
            made[name].append(value)
    return made


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


# -- refining --------------------------------------------------------------------------


class Refining(_Stage):
    """The second stage; a unit is a target with a few of its sources."""

    name = "refine"
    blocks = 8
    _room = 1  # for items of a class in certificates, of the bucket compiled last

    def compile(self, bucket: Bucket, most_blocks: int) -> Program:
        machine, config = self._machine, self._config
        tables, rows, spread = self._laid_out(bucket)
        split, devices = (
            (machine.everywhere, 1) if spread else (machine.split, machine.devices)
        )
        _, most = np.unique(bucket.j, return_counts=True)
        # The same for every part of a scan, so that what is left of it after a stop is
        # computed by the same program.
        lanes = max(1, min(_SOURCES, self._setup.refine, len(self._plan.sources)))
        held = (
            part.target_counts.max()
            for j in np.unique(bucket.j)
            for part in self._plan.targets[j].parts
        )
        self._room = ladder(int(max(held)), 4)
        together = _UNITS_CPU if machine.cpu else _UNITS
        needed = int(sum(-(-count // lanes) for count in most))
        while True:
            blocks = min(most_blocks, ladder(-(-needed // (together * devices)), 1))
            units = blocks * together * devices

            def index(*size):
                return jax.ShapeDtypeStruct((units, *size), np.int32, sharding=split)

            call, temporary = machine.compiled(
                refine_call,
                (*tables, index(lanes), index()),
                together=together,
                mesh=None if spread else machine.mesh,
                refine=config.step_count > 0,
            )
            if temporary <= 0.3 * machine.memory or together == lanes == 1:
                return Program(
                    call, units, units * lanes, lanes, blocks, rows, spread, temporary
                )
            together, lanes = (
                (together // 2, lanes) if together > 1 else (1, lanes // 2)
            )

    def chunks(self, bucket: Bucket, program: Program) -> Iterator[Bucket]:
        units = start = stop = 0
        for begin, end in _runs(bucket.j, program.lanes):
            if units == program.units:
                yield bucket.take(slice(start, begin))
                units, start = 0, begin
            units += 1
            stop = end
        if len(bucket):
            yield bucket.take(slice(start, stop))

    def launch(
        self, program: Program, chunk: Bucket, source: Table, target: Table
    ) -> Any:
        i, j = (
            np.zeros((program.units, program.lanes), np.int32),
            np.zeros(program.units, np.int32),
        )
        place = np.zeros((len(chunk), 2), int)
        for unit, (begin, end) in enumerate(_runs(chunk.j, program.lanes)):
            number = end - begin
            i[unit] = np.resize(source.row[chunk.i[begin:end]], program.lanes)
            j[unit] = target.row[chunk.j[begin]]
            place[begin:end] = np.stack(
                [np.full(number, unit), np.arange(number)], axis=1
            )
        put = partial(self._put, program)
        samples = [
            [table.host["samples"][table.row[k]] for k in places]
            for table, places in ((source, chunk.i), (target, chunk.j))
        ]
        return program.call(source.tree, target.tree, put(i), put(j)), place, samples

    def evaluate(self, chunk: Bucket, launched: Any) -> Any:
        """The certificates."""
        out, place, samples = launched
        # (pairs, parts, ...)
        learnt: Learnt = jax.tree.map(
            lambda v: v[place[:, 0], :, place[:, 1]], jax.device_get(out)
        )
        problems: list[Callable[[], Evaluated]] = []
        known = np.zeros(len(chunk), np.int32)
        for number, (source, target) in enumerate(zip(*samples, strict=True)):
            i, j = int(chunk.i[number]), int(chunk.j[number])
            keep = np.ones((self._parts, chunk.target.held), bool)
            for part, items in self._setup.shared.of_pair(i, j).items():
                keep[part, items] = False
                known[number] += len(items)
            for part in range(self._parts):
                mine = jax.tree.map(lambda v: v[number, part], learnt)
                log_prior = self._log_prior(j, part, chunk)
                problems.append(
                    partial(
                        certificate_input,
                        mine,
                        log_prior,
                        source[part],
                        target[part],
                        keep[part],
                    )
                )
        return learnt, self._certify(problems), known

    def _log_prior(self, j: int, part: int, chunk: Bucket) -> np.ndarray:
        """`log p_T` of the learning part in float64, so that J's row sums are the class
        shares to the last bit that matters.
        """
        counts = self._plan.targets[j].parts[part].learn_counts.astype(float)
        with np.errstate(divide="ignore"):
            return np.log(
                np.pad(counts / counts.sum(), (0, chunk.target.classes - len(counts)))
            )

    def _certify(self, problems: Sequence[Callable[[], Evaluated]]) -> Certified:
        """All of them, a few at a time, the last ones padded; on the CPU, in
        float64.
        """
        config, count = self._config, len(problems)
        size = min(_TOGETHER, ladder(count, 1))
        found = []
        with (
            jax.enable_x64(True),
            jax.default_device(jax.local_devices(backend="cpu")[0]),
        ):
            for start in range(0, count, size):
                few = [make() for make in problems[start : start + size]]
                stacked = jax.tree.map(
                    lambda *v: np.stack(v), *few, *[few[0]] * (size - len(few))
                )
                out = certify_pairs(
                    stacked,
                    np.float64(config.epsilon),
                    room=self._room,
                    rungs=config.rungs,
                    max_iterations=config.sinkhorn_iterations,
                )
                found.append(jax.tree.map(np.asarray, out))
        return jax.tree.map(lambda *v: np.concatenate(v)[:count], *found)

    def finish(
        self, chunk: Bucket, evaluated: Any
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        learnt, certified, known = evaluated
        pairs, parts = len(chunk), self._parts

        def by_part(v):
            return np.asarray(v).reshape(pairs, parts, *np.shape(v)[1:])

        items = by_part((certified.target_mass > 0).sum((1, 2)))
        weight = items / np.maximum(items.sum(1, keepdims=True), 1)

        def mean(v):
            return np.sum(np.where(weight > 0, weight * by_part(v), 0.0), axis=1)

        bound = Bound(
            **{
                name: mean(getattr(certified.bound, name))
                for name in Bound.__dataclass_fields__
            }
        )
        tau_lower = np.where(
            np.isfinite(certified.bound.lipschitz),
            certified.bound.lipschitz_constant * certified.distance_lower,
            np.nan,
        )
        entropy = bound.prior_entropy
        low, high = self._intervals(certified, weight, entropy, items, chunk)

        # Infinite rungs, where no affine map exists or none was asked for, are nulls.
        def finite(v):
            return np.where(np.isfinite(v), v, np.nan)

        def choice(name):
            return np.sum(weight * np.asarray(getattr(learnt, name), float), axis=1)

        columns: dict[str, Any] = {
            name: finite(getattr(bound, name)) for name in Bound.__dataclass_fields__
        } | {
            "score": scores(bound.target_loss, entropy),
            "score_low": low,
            "score_high": high,
            "informative": bound.tight < entropy,
            "holds": self._holds(certified, weight),
            "oscillation_wasserstein_lower": mean(certified.oscillation_lower),
            "wasserstein_lower": mean(tau_lower),
            "inner_loss": choice("best_loss"),
            "ridge": choice("ridge"),
            "scale": choice("scale"),
            "offset": choice("offset"),
            "probe_loss": choice("probe_loss"),
            "probe_accuracy": choice("probe_accuracy"),
            "items": items.sum(1).astype(np.int32),
            "shared_items": known,
        }
        rows, good = checked_rows(self._plan, chunk.pair, columns)
        rows["words"] = Words(
            np.where(good, np.asarray(learnt.words)[:, 0], -1).astype(np.int32), _WORDS
        )
        ended = (np.asarray(learnt.pull)[:, 0] >= 0) if self._config.step_count else 2
        rows["stopped"] = Words(np.where(good, ended, -1).astype(np.int32), _STOPPED)
        made = None
        if self._setup.arrays:
            assigned = np.take_along_axis(
                np.asarray(learnt.slots)[:, 0], np.asarray(learnt.slot_of)[:, 0], axis=1
            )
            share = np.einsum("np,npt->nt", weight, by_part(certified.share))
            made = array_rows(self._plan, chunk, assigned, share, good)
        return rows, made

    @staticmethod
    def _holds(certified: Certified, weight: np.ndarray) -> np.ndarray:
        """Whether the chain holds in every part of each pair."""
        fine = chain_holds(
            [
                certified.bound.target_loss,
                *(getattr(certified.bound, name) for name in RUNGS),
            ]
        )
        return (fine.reshape(weight.shape) | (weight == 0)).all(1)

    def _intervals(
        self, certified: Certified, weight, entropy, items, chunk: Bucket
    ) -> tuple[np.ndarray, np.ndarray]:
        """Bootstrap intervals of the score."""
        low, high = np.full(len(chunk), np.nan), np.full(len(chunk), np.nan)
        if not self._config.bootstrap:
            return low, high
        for number in range(len(chunk)):
            if (
                not items[number].sum()
                or not np.isfinite(
                    certified.bound.tight[
                        number * self._parts : (number + 1) * self._parts
                    ]
                ).all()
            ):
                continue
            classes, hits = [], []
            for part in range(self._parts):
                k, w = number * self._parts + part, weight[number, part]
                for t in np.flatnonzero(certified.target_mass[k].sum(1) > 0):
                    q, r = certified.source_mass[k, t], certified.target_mass[k, t]
                    losses = certified.losses
                    classes.append(
                        (
                            losses.source[k, t][q > 0],
                            q[q > 0] * w,
                            losses.target[k, t][r > 0],
                            r[r > 0] * w,
                        )
                    )
                    hits.append(losses.hit[k, t][r > 0])
            rng = np.random.default_rng(child(self._seed, 8, int(chunk.pair[number])))
            spread = intervals.bootstrap(
                classes,
                hits,
                float(entropy[number]),
                rng,
                self._config.bootstrap,
                self._config.interval,
            )
            low[number], high[number] = spread["score"]
        return low, high


def _runs(j: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Runs of equal targets, cut where they are longer than `most`."""
    borders = np.flatnonzero(np.diff(j)) + 1
    for begin, end in itertools.pairwise([0, *borders.tolist(), len(j)]):
        for start in range(begin, end, most):
            yield start, min(start + most, end)


@partial(jax.jit, static_argnames=("together", "mesh", "refine"))
def refine_call(
    source: Any,
    target: Any,
    i: Array,
    j: Array,
    *,
    together: int,
    mesh: Any,
    refine: bool,
) -> Learnt:
    """`learn_pairs` for units of a target `j (u,)` and its sources `i (u, q)`,
    `(u, parts, q, ...)`.
    """

    def body(source, target, i, j):
        def unit(x):
            sources = jax.tree.map(
                lambda v: jnp.swapaxes(v[x[0]], 0, 1), source
            )  # (parts, q, ...)
            mine = jax.tree.map(lambda v: v[x[1]], target)
            return jax.lax.map(
                lambda part: learn_pairs(*part, refine=refine), (sources, mine)
            )

        return jax.lax.map(unit, (i, j), batch_size=together)

    if mesh is None:
        return body(source, target, i, j)
    here, split = P(), P("pairs")
    return jax.shard_map(
        body,
        mesh=mesh,
        in_specs=(here, here, split, split),
        out_specs=split,
        check_vma=False,
    )(source, target, i, j)
