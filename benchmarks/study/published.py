"""The yardstick on a few pairs: the published algorithm in NumPy and POT, with its
three settings of the ablation.

It learns on the half of a target's items that `pairs` learns on, and is judged on the
other half. With "LearnedAll" stands what `analyze` says from the very same items of
both tasks, learned on and held out.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks.study.features import Grid
from benchmarks.study.settings import Pair
from benchmarks.study.store import Unit
from tta_jax.tasks.task import Task

SETTINGS = {"FixedAll": "none", "LearnedA": "map", "LearnedAll": "all"}
_VERSION = 3  # raised whenever what stands beside it changes
_TEST = 0.2  # of the source's items


def units(grid: Grid) -> Iterator[Unit]:
    settings = grid.settings
    for group in settings.trained:
        for source, target in group.published:
            pair = group.pair(source, target)
            depends = {
                "passes": settings.published_passes,
                "steps": settings.published_steps,
                "version": _VERSION,
            }
            for name in SETTINGS:
                yield grid.unit(
                    "published",
                    pair,
                    partial(_rows, grid, pair, name),
                    depends=depends,
                    setting=name,
                )


def _rows(grid: Grid, pair: Pair, name: str) -> list[dict[str, Any]]:
    from benchmarks.published_numpy import run

    settings = grid.settings
    key = grid.key()
    known = grid.source(pair)
    split = known.split(_TEST, key)
    learn, test = (known.take(rows) for rows in split)

    def arrays(task):
        return (
            np.asarray(task.features, np.float32),
            np.asarray(task.labels),
        )

    halves = map(arrays, grid.halves(pair, key))
    found = run(
        arrays(learn),
        arrays(test),
        *halves,
        passes=settings.published_passes,
        steps=settings.published_steps,
        learn=SETTINGS[name],
        seed=settings.seed,
    )
    row = {k: v for k, v in dataclasses.asdict(found).items() if k != "seconds"}
    if name == "LearnedAll":
        row |= _ours(
            known,
            grid.task(pair.encoder, pair.target, "target"),
            split,
            grid.places(pair, key),
            key,
        )
    phases = {f"seconds_{phase}": spent for phase, spent in found.seconds.items()}
    row |= {
        "bound": found.bound,
        "certified_bound": found.certified_bound,
        "seconds": sum(found.seconds.values()),
    }
    return [row | phases]


def _ours(
    source: Task, target: Task, sources: Any, targets: Any, key: Any
) -> dict[str, Any]:
    """The held-out chains of `analyze`, by default and with the objective that its
    certified bound asks for, and seconds.
    """
    import tta_jax as tta

    row: dict[str, Any] = {}
    for prefix, objective in (("ours", "score"), ("descent", "oscillation")):
        config = tta.Config(objective=objective, bootstrap=0)

        def run(config=config):
            return tta.analyze(
                source, None, target, config, key, parts=[(*sources, *targets)]
            )

        run()  # compiles
        begin = time.perf_counter()
        result = run()
        seconds = time.perf_counter() - begin
        assert result.held_out is not None
        row |= {
            f"{prefix}_{name}": value
            for name, value in dataclasses.asdict(result.held_out.bound).items()
        }
        row |= {f"{prefix}_holds": result.holds, f"{prefix}_seconds": seconds}
    return row
