"""What every method costs: seconds of a first and of a second call, and memory, each in a process of its own.

On the pairs of `pairs`, with the half of a target's items that is seen there. The first call compiles what its process has not met
(programs come from the compilation cache where it has them); memory is how far the process's peak rises above loaded data.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.study.features import Grid
from benchmarks.study.store import Unit

_ANALYSES = {
    "analyze, tight": {"rungs": "tight"},
    "analyze, all rungs": {},
    "analyze, all rungs, 4 folds": {"folds": 4},
    "analyze, objective oscillation": {"objective": "oscillation"},
}


def units(grid: Grid) -> Iterator[Unit]:
    import tta_jax as tta
    from tta_jax.unlabelled import LABEL_FREE

    settings = grid.settings
    for group in settings.frozen:
        for encoder, target in group.costs:
            labelled = [f"metrics.{name}" for name in tta.metrics.REGISTRY]
            free = [f"label_free.{name}" for name in LABEL_FREE]
            for method in settings.cost_methods or [*_ANALYSES, *labelled, "knn", *free]:
                about = {"group": f"frozen {group.name}", "encoder": encoder, "source": group.source, "target": target}
                about["method"] = method
                reads = (grid.path(encoder, group.source, "source"), grid.path(encoder, target, "target"))
                kept = {"seed": settings.seed, "holdout": settings.holdout, "items": settings.pair_items}
                run = lambda about=about: [_apart(grid, about)]
                yield Unit("costs", about, reads, kept, run)


def _apart(grid: Grid, about: dict[str, Any]) -> dict[str, Any]:
    words = [
        sys.executable,
        "-m",
        "benchmarks.study.costs",
        str(grid.folder),
        str(grid.settings.path),
        json.dumps(about),
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise ValueError((done.stderr.strip().splitlines() or ["it died"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def _call(grid: Grid, about: dict[str, Any]) -> Callable[[], Any]:
    import tta_jax as tta

    key = grid.key()
    known = grid.task(about["encoder"], about["source"], "source")
    seen, judged = grid.halves(about["encoder"], about["target"], key)
    method = about["method"]
    if method in _ANALYSES:
        return lambda: tta.analyze(known, None, seen, tta.Config(**_ANALYSES[method]), key)
    if method == "knn":
        return lambda: tta.knn(seen, judged)
    room, _, name = method.partition(".")
    if room == "label_free":
        return lambda: tta.label_free(seen, known, names=[name], key=key)
    return lambda: tta.metrics.compute(seen, source=known, names=[name], key=key)


def main() -> None:
    from benchmarks.study.settings import read
    from tta_jax.cli.terminal import keep_compilations

    folder, config, about = sys.argv[1:]
    keep_compilations()
    call = _call(Grid(Path(folder), read(Path(config))), json.loads(about))
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    before, seconds = peak(), []
    for _ in range(3):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    print(json.dumps({"seconds_first": seconds[0], "seconds_warm": min(seconds[1:]), "gb": peak() - before}))


if __name__ == "__main__":
    main()
