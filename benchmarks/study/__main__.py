"""Runs the study.

    python -m benchmarks.study                     # everything that is missing; goes on where it was stopped
    python -m benchmarks.study pairs free          # some parts
    python -m benchmarks.study --list              # what there is to do, and how much of it is done

Results are in `--out`: `features/`, and `units/`, one file of rows for each piece of work.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.study.settings import HERE, read

PARTS = ("pairs", "free", "few", "ablation")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all when left out")
    parser.add_argument("--config", type=Path, help="the configuration file (default: study.toml beside the program)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: benchmarks/.cache/study)")
    parser.add_argument("--workers", type=int, default=2, help="processes that share the work (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="count what is done and what is not, and stop")
    parser.add_argument("--share", help=argparse.SUPPRESS)  # "k/n": the k-th of n processes
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}")
    config = args.config or HERE / "study.toml"
    out = args.out or HERE.parent / ".cache" / "study"
    settings = read(config)

    from benchmarks.study.features import Grid
    from benchmarks.study.store import Store
    from tta_jax.cli.terminal import keep_compilations

    grid, store = Grid(out / "features", settings), Store(out / "units")
    if args.list:
        print(f"features: {len(grid.missing())} of {len(list(settings.needed()))} files missing")
        if grid.missing():
            return 0
    keep_compilations()
    grid.make()
    units = {part: list(_units(part, grid)) for part in args.parts or PARTS}
    for part, found in units.items():
        print(f"{part}: {sum(map(store.done, found))} of {len(found)} done", flush=True)
    todo = [unit for found in units.values() for unit in found if not store.done(unit)]
    if args.list:
        return 0
    if args.share:
        place, number = map(int, args.share.split("/"))
        begin = time.perf_counter()
        # Neighbours share compiled programs, so each process begins at a place of its own and goes round.
        first = len(todo) * place // number
        for unit in todo[first:] + todo[:first]:
            if not store.done(unit):
                said = store.do(unit)
                left = sum(not store.done(other) for other in todo)
                print(f"{time.perf_counter() - begin:6.0f} s  {unit}  {said}  {left} left", flush=True)
        return 0
    if todo:
        number = max(1, min(args.workers, len(todo)))
        command = [sys.executable, "-m", "benchmarks.study", *args.parts, "--config", str(config), "--out", str(out)]
        workers = [subprocess.Popen([*command, "--share", f"{k}/{number}"]) for k in range(number)]
        try:
            codes = [worker.wait() for worker in workers]
            if any(codes):
                return 1
        finally:
            for worker in workers:
                worker.terminate()
    return 0


def _units(part: str, grid):
    from benchmarks.study import ablation, labels, pairs

    return {"pairs": pairs.units, "free": labels.units_free, "few": labels.units_few, "ablation": ablation.units}[part](
        grid
    )


if __name__ == "__main__":
    raise SystemExit(main())
