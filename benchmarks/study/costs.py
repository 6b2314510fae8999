"""What every method costs: seconds of a first and of a second call, and memory, each in
a process of its own.

On the pairs of `pairs`, with the half of a target's items that is seen there. The first
call compiles what its process has not met (programs come from the compilation cache
where it has them); memory is how far the process's peak rises above what it holds with
the data loaded. What refuses such data (H-score, with fewer items than features) has a
row that says so.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.memory import forget_peak, peak
from benchmarks.study.features import Grid
from benchmarks.study.settings import Pair
from benchmarks.study.store import Unit

_VERSION = 2  # raised whenever what is measured changes
_ANALYSES = {
    "analyze, tight": {"rungs": "tight"},
    "analyze, all rungs": {},
    "analyze, all rungs, 4 folds": {"folds": 4},
    "analyze, objective oscillation": {"objective": "oscillation"},
}


def units(grid: Grid) -> Iterator[Unit]:
    import tta_jax as tta
    from tta_jax.metrics.label_free import LABEL_FREE

    settings = grid.settings
    for group in settings.frozen:
        for encoder, target in group.costs:
            labelled = [f"metrics.{name}" for name in tta.metrics.REGISTRY]
            free = [f"label_free.{name}" for name in LABEL_FREE]
            pair = group.pair(encoder, target)
            for method in settings.cost_methods or [
                *_ANALYSES,
                "probe",
                *labelled,
                "knn",
                *free,
            ]:
                yield grid.unit(
                    "costs",
                    pair,
                    partial(_apart, grid, pair, method),
                    method=method,
                    depends={"version": _VERSION},
                )


class Refused(Exception):
    """A method that says nothing of such data."""


def _apart(grid: Grid, pair: Pair, method: str) -> list[dict[str, Any]]:
    about = json.dumps(dataclasses.asdict(pair))
    words = [
        sys.executable,
        "-m",
        "benchmarks.study.costs",
        str(grid.folder),
        str(grid.settings.path),
        about,
        method,
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise ValueError((done.stderr.strip().splitlines() or ["it died"])[-1])
    return [json.loads(done.stdout.splitlines()[-1])]


def _call(grid: Grid, pair: Pair, method: str) -> Callable[[], Any]:
    import tta_jax as tta

    key = grid.key()
    known, (seen, judged) = grid.source(pair), grid.halves(pair, key)
    if method in _ANALYSES:
        return lambda: tta.analyze(
            known, None, seen, tta.Config(**_ANALYSES[method]), key
        )
    if method == "knn":
        return lambda: tta.knn(seen, judged)
    if method == "probe":
        return lambda: tta.linear_probe(seen, judged, key=key)
    room, _, name = method.partition(".")

    def scores():
        if room == "label_free":
            found = tta.label_free(seen, known, names=[name], key=key)
        else:
            found = tta.metrics.compute(seen, source=known, names=[name], key=key)
        for score in found:
            if score.reason:
                raise Refused(score.reason)

    return scores


def main() -> None:
    from benchmarks.study.settings import read
    from tta_jax.cli._terminal import keep_compilations

    folder, config, about, method = sys.argv[1:]
    keep_compilations()
    call = _call(
        Grid(Path(folder), read(Path(config))), Pair(**json.loads(about)), method
    )
    forget_peak()
    before, seconds = peak(), []
    try:
        for _ in range(3):
            begin = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - begin)
    except Refused as refusal:
        print(json.dumps({"refused": str(refusal)}))
        return
    print(
        json.dumps(
            {
                "seconds_first": seconds[0],
                "seconds_warm": min(seconds[1:]),
                "gb": peak() - before,
            }
        )
    )


if __name__ == "__main__":
    main()
