"""What the two stages of a scan share: settings, row status, arrays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from tta_jax._internal.typing import Array
from tta_jax.config import Config
from tta_jax.fitting.prepare import ALL_LEARNED
from tta_jax.scans.device_cache import DeviceMesh, ProfileCache
from tta_jax.scans.executor import Program, row_names
from tta_jax.scans.parquet_store import STATUS, DictionaryColumn
from tta_jax.scans.plan import Bucket, Plan, SharedItems
from tta_jax.tasks.splits import Seed

_REASONS = (
    ALL_LEARNED,
    "its figures are not finite: features hold NaN or infinity, or are far too large",
)


@dataclasses.dataclass(frozen=True, eq=False)
class ScanSettings:
    """What both stages of a scan are told: the plan, the devices, and how pairs are
    evaluated.

    `refine`: sources of each target that are refined, at most.
    """

    plan: Plan
    machine: DeviceMesh
    config: Config
    seed: Seed
    refine: int
    arrays: bool

    @functools.cached_property
    def shared(self) -> SharedItems:
        """Who knows which items."""
        return SharedItems(self.plan.sources, self.plan.targets)

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


class Stage:
    """What both stages have."""

    name: str

    def __init__(
        self,
        setup: ScanSettings,
        tell: Callable[[str], None],
        stopped: Callable[[], bool] = lambda: False,
    ):
        self._setup, self._config, self._seed = setup, setup.config, setup.seed
        self._plan, self._machine, self._parts = setup.plan, setup.machine, setup.parts
        self.one_at_a_time = setup.machine.cpu
        self.tables = ProfileCache(
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


def chance_corrected_scores(loss: np.ndarray, entropy: np.ndarray) -> np.ndarray:
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
    rows["status"] = DictionaryColumn((~good).astype(np.int32), STATUS)
    rows["reason"] = DictionaryColumn(
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
