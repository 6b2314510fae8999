"""Refine chunks of pairs: fit on the devices, certify on the host."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tta_jax._internal.padding import geometric_bucket
from tta_jax._internal.typing import Array
from tta_jax.bounds import intervals
from tta_jax.bounds.certificate import chain_holds
from tta_jax.bounds.chain import RUNGS, Bound, Chain
from tta_jax.fitting.prepare import bootstrap_seed
from tta_jax.scans.device_cache import P, ProfileTable
from tta_jax.scans.executor import Program
from tta_jax.scans.parquet_store import DictionaryColumn
from tta_jax.scans.plan import Bucket
from tta_jax.scans.refinement import (
    CertificateInput,
    RefinedPairs,
    certificate_input,
    certify_pairs,
    held_groups,
    refine_pairs,
)
from tta_jax.scans.stage import Stage, array_rows, chance_corrected_scores, checked_rows

_SOURCES = 8  # of a target that are refined together, at most
_UNITS_CPU, _UNITS = 1, 16  # targets that are refined side by side
# pairs whose certificates are computed in one call: no more of their float64 copies are
# held at once
_TOGETHER = 4
_CODE_WORDS = ("mean source logits", "equidistant")
_STOPPED = (
    "kept the closed-form start",
    "refined the closed-form start",
    "closed-form start (steps=0)",
)


class Refining(Stage):
    """The second stage; a unit is a target with a few of its sources."""

    name = "refine"
    blocks = 8
    _capacity = 1  # for items of a class in certificates, of the bucket compiled last

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
        self._capacity = geometric_bucket(int(max(held)), 4)
        together = _UNITS_CPU if machine.cpu else _UNITS
        needed = int(sum(-(-count // lanes) for count in most))
        while True:
            blocks = min(
                most_blocks, geometric_bucket(-(-needed // (together * devices)), 1)
            )
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
        self,
        program: Program,
        chunk: Bucket,
        source: ProfileTable,
        target: ProfileTable,
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
        learnt: RefinedPairs = jax.tree.map(
            lambda v: v[place[:, 0], :, place[:, 1]], jax.device_get(out)
        )
        problems: list[Callable[[], CertificateInput]] = []
        known = np.zeros(len(chunk), np.int32)
        groups = []
        for number, (source, target) in enumerate(zip(*samples, strict=True)):
            i, j = int(chunk.i[number]), int(chunk.j[number])
            keep = np.ones((self._parts, chunk.target.held), bool)
            for part, items in self._setup.shared.of_pair(i, j).items():
                keep[part, items] = False
                known[number] += len(items)
            for part in range(self._parts):
                mine = jax.tree.map(lambda v: v[number, part], learnt.fit)
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
            groups.append(
                [
                    held_groups(
                        np.asarray(learnt.fit.classes.source_class[number, part]),
                        source[part],
                        target[part],
                    )
                    for part in range(self._parts)
                ]
            )
        return learnt, self._certify(problems), known, groups

    def _log_prior(self, j: int, part: int, chunk: Bucket) -> np.ndarray:
        """`log p_T` of the learning part in float64, so that J's row sums are the class
        shares to the last bit that matters.
        """
        counts = self._plan.targets[j].parts[part].learn_counts.astype(float)
        with np.errstate(divide="ignore"):
            return np.log(
                np.pad(counts / counts.sum(), (0, chunk.target.classes - len(counts)))
            )

    def _certify(self, problems: Sequence[Callable[[], CertificateInput]]) -> Chain:
        """All of them, a few at a time, the last ones padded; on the CPU, in
        float64.
        """
        config, count = self._config, len(problems)
        size = min(_TOGETHER, geometric_bucket(count, 1))
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
                    capacity=self._capacity,
                    rungs=config.rungs,
                    max_iterations=config.sinkhorn_iterations,
                )
                found.append(jax.tree.map(np.asarray, out))
        return jax.tree.map(lambda *v: np.concatenate(v)[:count], *found)

    def finish(
        self, chunk: Bucket, evaluated: Any
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        learnt, certified, known, groups = evaluated
        pairs, parts = len(chunk), self._parts

        def by_part(v):
            return np.asarray(v).reshape(pairs, parts, *np.shape(v)[1:])

        chain: Chain = jax.tree.map(by_part, certified)
        masses = np.asarray(chain.classes.target_mass)
        items = (masses > 0).sum((2, 3))
        weight = intervals.fold_weights(items)
        mean = partial(intervals.mean_over_folds, weights=weight)
        bound, terms = mean(chain.bound), chain.classes.terms
        entropy = bound.prior_entropy
        constant = chain.bound.lipschitz_constant
        there = np.isfinite(chain.bound.lipschitz)
        distance = np.where(there, constant, np.nan) * terms.distance_lower.sum(2)
        low, high = self._intervals(chain, weight, entropy, chunk, groups)

        # Infinite rungs, where no affine map exists or none was asked for, are nulls.
        def finite(v):
            return np.where(np.isfinite(v), v, np.nan)

        def choice(v):
            return np.sum(weight * np.asarray(v, float), axis=1)

        found = learnt.fit.closed_form

        columns: dict[str, Any] = {
            name: finite(getattr(bound, name)) for name in Bound.__dataclass_fields__
        } | {
            "score": chance_corrected_scores(bound.target_loss, entropy),
            "score_low": low,
            "score_high": high,
            "informative": bound.tight < entropy,
            "holds": self._holds(chain.bound, weight),
            "directed_wasserstein_lower": mean(terms.directed_lower.sum(2)),
            "oscillation_wasserstein_lower": mean(terms.oscillation_lower.sum(2)),
            "wasserstein_lower": mean(distance),
            "inner_loss": choice(found.best_loss),
            "ridge": choice(found.ridge),
            "scale": choice(found.scale),
            "offset": choice(found.offset),
            "floor": choice(found.floor),
            "probe_loss": choice(learnt.probe_loss),
            "probe_accuracy": choice(learnt.probe_accuracy),
            "items": items.sum(1).astype(np.int32),
            "shared_items": known,
        }
        rows, good = checked_rows(self._plan, chunk.pair, columns)
        rows["words"] = DictionaryColumn(
            np.where(good, np.asarray(found.words)[:, 0], -1).astype(np.int32),
            _CODE_WORDS,
        )
        ended = (np.asarray(found.pull)[:, 0] >= 0) if self._config.step_count else 2
        rows["stopped"] = DictionaryColumn(
            np.where(good, ended, -1).astype(np.int32), _STOPPED
        )
        made = None
        if self._setup.arrays:
            classes = learnt.fit.classes
            assigned = np.take_along_axis(
                classes.source_class[:, 0], classes.source_of[:, 0], axis=1
            )
            # p_T on the items evaluated.
            share = intervals.mean_over_folds(
                np.moveaxis(masses.sum(3), 1, 2), weight[:, None]
            )
            made = array_rows(self._plan, chunk, assigned, share, good)
        return rows, made

    @staticmethod
    def _holds(bound: Bound, weight: np.ndarray) -> np.ndarray:
        """Whether the chain holds in every fold of each pair."""
        fine = chain_holds([bound.target_loss, *(getattr(bound, r) for r in RUNGS)])
        return (fine | (weight == 0)).all(1)

    def _intervals(
        self,
        chain: Chain,
        weight: np.ndarray,
        entropy: np.ndarray,
        chunk: Bucket,
        groups: list[list[tuple[np.ndarray, np.ndarray]]],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Bootstrap intervals of the score."""
        low, high = np.full(len(chunk), np.nan), np.full(len(chunk), np.nan)
        evaluated = weight.any(1) & np.isfinite(chain.bound.tight).all(1)
        for number in np.flatnonzero(evaluated) if self._config.bootstrap else ():
            folds = [
                [
                    intervals.class_losses(
                        jax.tree.map(lambda v: v[number, part, t], chain.classes),
                        int(t),
                        groups[number][part],
                    )
                    for t in np.flatnonzero(mass.sum(1) > 0)
                ]
                for part, mass in enumerate(chain.classes.target_mass[number])
            ]
            contents = (
                self._plan.sources[chunk.i[number]].content,
                self._plan.targets[chunk.j[number]].content,
            )
            rng = np.random.default_rng(bootstrap_seed(self._seed, *contents))
            low[number], high[number] = intervals.bootstrap(
                intervals.join_folds(folds, weight[number]),
                float(entropy[number]),
                rng,
                self._config.bootstrap,
                self._config.interval,
            ).limits.get("score", (np.nan, np.nan))
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
) -> RefinedPairs:
    """`refine_pairs` for units of a target `j (u,)` and its sources `i (u, q)`,
    `(u, parts, q, ...)`.
    """

    def body(source, target, i, j):
        def unit(x):
            sources = jax.tree.map(
                lambda v: jnp.swapaxes(v[x[0]], 0, 1), source
            )  # (parts, q, ...)
            mine = jax.tree.map(lambda v: v[x[1]], target)
            return jax.lax.map(
                lambda part: refine_pairs(*part, refine=refine), (sources, mine)
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
