"""Runs the study and writes its tables; what is done already is not done again.

    python -m benchmarks.study               # all but fine-tuning; goes on if stopped
    python -m benchmarks.study pairs free    # some parts
    python -m benchmarks.study finetune      # only on request: hours
    python -m benchmarks.study --quick       # a small one: does all work?
    python -m benchmarks.study --features    # what encoders make of the data, no more
    python -m benchmarks.study --list        # what there is to do, and what is done
    python -m benchmarks.study --tables      # tables of what there is, no more
    # the published report again, from its tables
    python -m benchmarks.study --tables --known benchmarks/study/results

Parts: pairs (bounds, metrics and probes of every encoder, source and target),
relatedness (how related the source of every pair is), free (scores without target
labels), few (few labels), ablation (FixedAll, LearnedA,
LearnedAll), published (the published algorithm, on few pairs), sizes (the chain over
sample size), costs (time and memory), finetune.

Results are in `--out`: `report.md`, `report.html`, `figures/`, `tables/PART.parquet`
with every row, `features/` and the hashes of those that were read, and `units/`, one
file of rows for each piece of work. Those that the README quotes:
`--results benchmarks/study/results`; parts that were not begun here stay there as they
are, tables of another configuration are refused. Work that fails is listed, is tried
again by the next run, and makes this one end with status 1.
"""

from __future__ import annotations

import argparse
import importlib
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

# Before jax is there: programs that are read back make XLA warn, wrongly, of another
# processor.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.study.settings import HERE, read

if TYPE_CHECKING:
    from benchmarks.study.features import Grid
    from benchmarks.study.parts import Part
    from benchmarks.study.settings import Settings
    from benchmarks.study.store import Store, Unit

PARTS = {
    "pairs": "pairs.units",
    "relatedness": "relatedness.units",
    "free": "labels.units_free",
    "few": "labels.units_few",
    "ablation": "ablation.units",
    "published": "published.units",
    "sizes": "sizes.units",
    "costs": "costs.units",
    "finetune": "finetune.units",
}
ON_REQUEST = ("finetune",)
_MOST_MAPS = 45_000  # of the 65,530 that Linux allows; a unit adds 9,000 at most


def main() -> int:
    started = (
        "--share" in sys.argv
    )  # by another process of the study, which speaks for it
    if not started:
        signal.signal(
            signal.SIGTERM, lambda number, frame: sys.exit(128 + number)
        )  # so that those it started end, too
    try:
        return _main()
    except KeyboardInterrupt:
        if not started:
            print("interrupted; the same command goes on", file=sys.stderr)
        return 130


def _main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help="of those below; all but finetune when left out",
    )
    parser.add_argument(
        "--quick", action="store_true", help="the small study of quick.toml"
    )
    parser.add_argument(
        "--config",
        type=Path,
        help="another configuration file (default: study.toml beside the program)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help=(
            "folder of the results (default: benchmarks/.cache/NAME, NAME of the file)"
        ),
    )
    parser.add_argument(
        "--results",
        type=Path,
        help="folder of reports, figures and tables (default: that of --out)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=2,
        help="processes that share the work (default: %(default)s)",
    )
    parser.add_argument(
        "--features",
        action="store_true",
        help="make the features that are missing, and stop",
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="count what is done and what is not, and stop",
    )
    parser.add_argument(
        "--tables", action="store_true", help="write tables of what is done, and stop"
    )
    parser.add_argument(
        "--known",
        type=Path,
        help="folder of earlier results: its tables stand in for parts not begun here",
    )
    parser.add_argument(
        "--share", help=argparse.SUPPRESS
    )  # "k/n": the k-th of n processes
    parser.add_argument(
        "--encoder", help=argparse.SUPPRESS
    )  # with --features and --share: which
    args = parser.parse_args()
    if args.share:
        _own_cores(*map(int, args.share.split("/")))
    if unknown := set(args.parts) - set(PARTS):
        parser.error(
            f"unknown part {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}"
        )
    if args.workers < 1:
        parser.error(f"--workers: found {args.workers}; give 1 or more")
    if args.quick and args.config:
        parser.error("--quick has a configuration of its own; leave out --config")
    config = args.config or HERE / ("quick.toml" if args.quick else "study.toml")
    out = args.out or HERE.parent / ".cache" / config.stem
    settings = read(config)

    from benchmarks.study.features import Grid
    from benchmarks.study.store import Store
    from tta_jax.cli._terminal import keep_compilations

    grid, store = Grid(out / "features", settings), Store(out / "units")
    # What is published stays, unless there is something in its place.
    known = known_parts(args.results, settings) if args.results else {}
    if args.known:
        if not (earlier := known_parts(args.known, settings)):
            raise SystemExit(
                f"{args.known}: no tables of the study; give the folder of a --results"
            )
        known |= earlier
    keep_compilations()
    wanted = args.parts or [
        part for part in PARTS if part not in ON_REQUEST or args.list or args.tables
    ]
    units = {part: list(units_of(part, grid)) for part in wanted}
    read_by = {
        path for found in units.values() for unit in found for path in unit.reads
    }
    missing = [key for key in grid.missing() if grid.path(*key) in read_by]
    if args.list and missing:
        print(f"features: {len(missing)} of {len(read_by)} files missing")
    words = [
        sys.executable,
        "-m",
        "benchmarks.study",
        *wanted,
        "--config",
        str(config),
        "--out",
        str(out),
    ]
    if args.share:
        if args.features:
            grid.make([key for key in missing if key[0] == args.encoder])
        else:
            _work(
                [unit for found in units.values() for unit in found],
                store,
                *map(int, args.share.split("/")),
            )
        return 0
    if not (args.list or args.tables):
        grid.prepare(missing)
        encoders = list(dict.fromkeys(encoder for encoder, _, _ in missing))
        if not _one_by_one(
            [[*words, "--features", "--encoder", encoder] for encoder in encoders],
            args.workers,
        ):
            return 1
        if args.features:
            return 0
    for part, found in units.items():
        print(f"{part}: {sum(map(store.done, found))} of {len(found)} done", flush=True)
    if args.list:
        return 0
    done = args.tables or all(
        store.done(unit) for found in units.values() for unit in found
    )
    if not done and not _side_by_side(words, args.workers):
        return 1

    from benchmarks.study.parts import gathered
    from benchmarks.study.report import publish

    here = {
        part: gathered(settings, store, list(units_of(part, grid))) for part in PARTS
    }
    parts = {
        part: found if found.rows else known.get(part, found)
        for part, found in here.items()
    }
    for path in publish(args.results or out, settings, parts):
        print(path)
    left = [unit for found in units.values() for unit in found if not store.done(unit)]
    if left and not args.tables:
        print(
            (
                f"{len(left)} failed (reasons are in the report; the same command "
                "tries them again):"
            ),
            file=sys.stderr,
        )
        print(*left[:5], *(["..."] if len(left) > 5 else []), sep="\n", file=sys.stderr)
    return int(bool(left) and not args.tables)


def known_parts(folder: Path, settings: Settings) -> dict[str, Part]:
    """Of earlier results; none where there are none."""
    from benchmarks.study.parts import read_part

    tables = {part: folder / "tables" / f"{part}.parquet" for part in PARTS}
    return {
        part: read_part(path, settings)
        for part, path in tables.items()
        if path.exists()
    }


def units_of(part: str, grid: Grid) -> Iterator[Unit]:
    module, name = PARTS[part].split(".")
    yield from getattr(importlib.import_module(f"benchmarks.study.{module}"), name)(
        grid
    )


def _own_cores(place: int, number: int) -> None:
    """Each process keeps to cores of its own: threads of several that wait for each
    other's cores take several times as long.
    """
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[place % len(cores) :: number])


def _work(units: list[Unit], store: Store, place: int, number: int) -> None:
    from tta_jax._internal.compilation import evict_compiled_programs

    begin, since = time.perf_counter(), time.time()
    todo = [unit for unit in units if not store.done(unit)]
    # Neighbours share compiled programs, so each process has a stretch of its own. It
    # helps with the others' from their far end, so
    # that two hardly ever do the same.
    first, last = (len(todo) * p // number for p in (place, place + 1))
    for unit in todo[first:last] + todo[:first][::-1] + todo[last:][::-1]:
        if not store.settled(unit, since):
            said = store.do(unit)
            evict_compiled_programs(_MOST_MAPS)
            left = sum(not store.done(other) for other in todo)
            print(
                f"{time.perf_counter() - begin:6.0f} s  {unit}  {said}  {left} left",
                flush=True,
            )


def _one_by_one(commands: list[list[str]], number: int) -> bool:
    """Run the commands, so many at a time; whether all went well."""
    places: queue.SimpleQueue[int] = queue.SimpleQueue()
    for place in range(number):
        places.put(place)
    running: set[subprocess.Popen] = set()

    def run(words: list[str]) -> int:
        place = places.get()
        try:
            running.add(
                process := subprocess.Popen([*words, "--share", f"{place}/{number}"])
            )
            return process.wait()
        finally:
            places.put(place)

    with ThreadPoolExecutor(number) as pool:
        codes = [pool.submit(run, words) for words in commands]
        try:
            return not any(code.result() for code in codes)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:
                process.terminate()
            raise


def _side_by_side(words: list[str], number: int) -> bool:
    """Run a command in so many processes that share its work; whether all went well."""
    workers = [
        subprocess.Popen([*words, "--share", f"{k}/{number}"]) for k in range(number)
    ]
    try:
        codes = [worker.wait() for worker in workers]
        return not any(codes)
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait()


if __name__ == "__main__":
    raise SystemExit(main())
