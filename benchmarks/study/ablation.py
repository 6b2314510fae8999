"""The paper's ablation on ordered pairs of tasks, with the encoder trained on the source: FixedAll, LearnedA, LearnedAll.

By descent on the oscillation bound, held out and certified; `published` has it by the published algorithm. Labels that are not
learned are a random permutation, as in the paper; "labels assigned" has those of least cost instead, with the map learned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax

from benchmarks.study.features import Grid, with_enough_classes
from benchmarks.study.settings import trained_name
from benchmarks.study.store import Unit

_VERSION = 2  # raised whenever figures of a pair change
SETTINGS = {
    "FixedAll": {"learn": "none", "assignment": "random"},
    "LearnedA": {"learn": "map", "assignment": "random"},
    "labels assigned": {"learn": "map"},
    "LearnedAll": {"learn": "all"},
}


def units(grid: Grid) -> Iterator[Unit]:
    settings = grid.settings
    for group in settings.trained:
        for source in group.ablation:
            for target in group.ablation:
                if source != target:
                    encoder = trained_name(group, source)
                    about = {"group": f"trained {group.name}", "encoder": encoder, "source": source, "target": target}
                    reads = (grid.path(encoder, source, "source"), grid.path(encoder, target, "target"))
                    kept = {"seed": settings.seed, "items": settings.pair_items, "version": _VERSION}
                    run = lambda encoder=encoder, source=source, target=target: _rows(grid, encoder, source, target)
                    yield Unit("ablation", about, reads, kept, run)


def _rows(grid: Grid, encoder: str, source: str, target: str) -> list[dict[str, Any]]:
    import tta_jax as tta

    seen = grid.target(encoder, target)
    known = with_enough_classes(grid.task(encoder, source, "source"), seen.num_classes)
    rows = []
    for name, how in SETTINGS.items():
        config = tta.Config(objective="oscillation", **how, bootstrap=0)
        result = tta.analyze(known, None, seen, config, jax.random.key(grid.settings.seed))
        held = result.held_out
        assert held is not None
        seconds = result.timings["total"]
        rows.append({"setting": name, "seconds": seconds, "holds": result.holds, **dataclasses.asdict(held.bound)})
    return rows
