"""The paper's ablation on ordered pairs of tasks, with the encoder trained on the source: FixedAll, LearnedA, LearnedAll.

Twice: by the published algorithm, on few pairs, and by descent on the oscillation bound. Labels that are not learned are a random
permutation, as in the paper; "labels assigned" has those of least cost instead, with the map learned. All figures are held out and
certified; the published bound, with the constant that the paper takes from samples, stands beside them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax

from benchmarks.study.features import Grid
from benchmarks.study.settings import trained_name
from benchmarks.study.store import Unit

SETTINGS = {
    "FixedAll": {"learn": "none", "assignment": "random"},
    "LearnedA": {"learn": "map", "assignment": "random"},
    "labels assigned": {"learn": "map"},
    "LearnedAll": {"learn": "all"},
}


def units(grid: Grid) -> Iterator[Unit]:
    for group in grid.settings.trained:
        for source in group.ablation:
            for target in group.ablation:
                if source != target:
                    yield _unit(grid, trained_name(group, source), source, target, "oscillation")
                    if source in group.published and target in group.published:
                        yield _unit(grid, trained_name(group, source), source, target, "published")


def _unit(grid: Grid, encoder: str, source: str, target: str, objective: str) -> Unit:
    about = {"encoder": encoder, "source": source, "target": target, "objective": objective}
    reads = (grid.path(encoder, source, "source"), grid.path(encoder, target, "target"))
    settings = {"seed": grid.settings.seed}
    return Unit("ablation", about, reads, settings, lambda: _rows(grid, encoder, source, target, objective))


def _rows(grid: Grid, encoder: str, source: str, target: str, objective: str) -> list[dict[str, Any]]:
    import tta_jax as tta

    tasks = grid.task(encoder, source, "source"), grid.task(encoder, target, "target")
    rows = []
    for name, how in SETTINGS.items():
        if objective == "published" and name == "labels assigned":
            continue
        config = tta.Config(objective=objective, **how, bootstrap=0)
        result = tta.analyze(tasks[0], None, tasks[1], config, jax.random.key(grid.settings.seed))
        held = result.held_out
        assert held is not None
        bound = held.bound
        row = {"setting": name, "seconds": result.timings["total"], "holds": result.holds, **dataclasses.asdict(bound)}
        if objective == "published":
            slope = result.info["published_lipschitz_constant"] * bound.wasserstein
            row["published"] = bound.reweighted_source_loss + bound.label_mismatch + slope
        rows.append(row)
    return rows
