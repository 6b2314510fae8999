"""How many target labels it takes until a rung says more than guessing: the chain, held
out, over sample size.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.study.features import Grid
from benchmarks.study.settings import Pair
from benchmarks.study.store import Unit

_VERSION = 2  # raised whenever figures over sample size change


def units(grid: Grid) -> Iterator[Unit]:
    settings = grid.settings
    for group in settings.trained:
        for source, target in group.sizes:
            pair = group.pair(source, target)
            for objective in settings.size_objectives:
                run = partial(_rows, grid, pair, objective)
                depends = {"sizes": settings.sizes, "version": _VERSION}
                yield grid.unit(
                    "sizes", pair, run, of="more", depends=depends, objective=objective
                )


def _rows(grid: Grid, pair: Pair, objective: str) -> list[dict[str, Any]]:
    import tta_jax as tta

    key = jax.random.key(grid.settings.seed)
    known, whole = grid.source(pair), grid.task(pair.encoder, pair.target, "more")
    order = np.random.default_rng(grid.settings.seed).permutation(len(whole))
    rows = []
    # What does not fit is left out; all there is comes last.
    for items in sorted(
        {
            *(n for n in grid.settings.sizes if n < len(whole)),
            min(len(whole), max(grid.settings.sizes)),
        }
    ):
        begin = time.perf_counter()
        # As many source items as there are: the transport's estimate is limited by the
        # scarcer side.
        config = tta.Config(objective=objective, bootstrap=0, source_per_class=0)
        result = tta.analyze(
            known, None, whole.take(np.sort(order[:items])), config, key
        )
        held = result.held_out
        assert held is not None
        row = {
            "items": items,
            "seconds": time.perf_counter() - begin,
            "holds": result.holds,
        }
        rows.append(
            row
            | dataclasses.asdict(held.bound)
            | {"informative_rungs": list(held.bound.informative_rungs)}
        )
    return rows
