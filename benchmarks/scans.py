"""Speed, memory and compilations of scans, each beside a yardstick of the same run.

python -m benchmarks.scans screen                       # pairs a second, against a loop over `analyze` calls that are compiled
python -m benchmarks.scans refine                       # the same for refining, n = 500 and n = 100
python -m benchmarks.scans many [--sizes 1000 1000000]  # time per pair, memory and compilations as the scan grows
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads wait busily and take the cores from XLA's

import argparse
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

import tta_jax as tta
from tta_jax.scans.run import Progress

_COMPILED = "/jax/core/compile/backend_compile_duration"


def tasks(count: int, items: int, dim: int, classes: int, seed: int, name: str) -> list[tta.Task]:
    """Gaussian classes whose means are closer together in some tasks than in others."""
    made = []
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        labels = rng.permutation(np.arange(items) % classes)
        means = rng.normal(size=(classes, dim)) * rng.uniform(0.08, 0.3)
        features = rng.standard_normal((items, dim), np.float32) + means[labels].astype(np.float32)
        made.append(tta.Task.from_arrays(features, labels, name=f"{name}{number}"))
    return made


def resident() -> float:
    """Memory of this process now, GB."""
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * 4096 / 1e9


class Watch:
    """Times and memory as a scan tells of its progress."""

    def __init__(self) -> None:
        self.compilations = 0
        self.profiles = self.before = 0.0
        self.marks: list[tuple[float, int, float]] = []
        jax.monitoring.register_event_duration_secs_listener(self._compiled)

    def _compiled(self, name: str, *_, **__) -> None:
        self.compilations += name == _COMPILED

    def __call__(self, now: Progress) -> None:
        if now.phase == "profiles":
            self.before = time.perf_counter()
        elif now.phase in ("screen", "refine") and now.done:
            self.marks.append((time.perf_counter(), now.done, resident()))

    def seconds_per_pair(self) -> tuple[float, float]:
        """Mean, and median over chunks, since the profiles were ready."""
        times = np.diff([self.before, *(t for t, _, _ in self.marks)])
        pairs = np.diff([0, *(n for _, n, _ in self.marks)])
        return times.sum() / pairs.sum(), float(np.median(times / pairs))


def loop(sources: list[tta.Task], targets: list[tta.Task], config: tta.Config, most: int) -> float:
    """Seconds per pair of a Python loop over `analyze`, everything compiled before."""
    pairs = [(s, t) for t in targets for s in sources][:most]
    tta.analyze(pairs[0][0], None, pairs[0][1], config)
    begun = time.perf_counter()
    for source, target in pairs:
        tta.analyze(source, None, target, config)
    return (time.perf_counter() - begun) / len(pairs)


def screen(args: argparse.Namespace) -> None:
    sources, targets = (tasks(args.tasks, args.items, args.dim, args.classes, k, n) for k, n in ((0, "s"), (1, "t")))
    tta.scan(sources[:2], targets[:2], refine=0)
    watch = Watch()
    result = tta.scan(sources, targets, refine=0, progress=watch)
    mean, median = watch.seconds_per_pair()
    yardstick = loop(sources, targets, tta.Config(rungs="tight", steps=0, bootstrap=0), 20)
    loss = np.mean(result.table("screen", ["target_loss"])["target_loss"].to_numpy())
    print(f"screen, {len(result)} pairs, n = {args.items} + {args.items}, d = {args.dim}, K = {args.classes}")
    print(
        f"  {1 / mean:8.0f} pairs/s once the profiles are there (median over chunks {1 / median:.0f}); mean target loss {loss:.3f}"
    )
    print(
        f"  {1 / yardstick:8.1f} pairs/s in a loop over analyze(rungs='tight', steps=0, bootstrap=0): ratio {yardstick / mean:.0f}"
    )


def refine(args: argparse.Namespace) -> None:
    for items in args.sizes or (500, 100):
        sources, targets = (tasks(args.tasks, items, args.dim, args.classes, k, n) for k, n in ((0, "s"), (1, "t")))
        most = min(args.best, len(sources))
        begun = time.perf_counter()
        tta.scan(sources, targets, refine=most)
        cold = time.perf_counter() - begun
        watch = Watch()
        rows = tta.scan(sources, targets, refine=most, progress=watch).table("refine")
        seconds = (watch.marks[-1][0] - watch.before) / len(rows)
        yardstick = loop(sources, targets, tta.Config(), args.loop)
        holds, loss = np.mean(rows["holds"].to_pylist()), np.mean(rows["target_loss"].to_numpy())
        print(
            f"refine, {len(rows)} pairs, {most} for each target, n = {items} + {items}, d = {args.dim}, K = {args.classes}"
        )
        print(
            f"  {1 / seconds:8.2f} pairs/s; the chain holds for {holds:.0%}; mean target loss {loss:.3f}; first scan {cold:.0f} s"
        )
        print(
            f"  {1 / yardstick:8.2f} pairs/s in a loop over compiled analyze: ratio {yardstick / seconds:.2f}",
            flush=True,
        )


def many(args: argparse.Namespace) -> None:
    print(
        "pairs      seconds  profiles  ms/pair mean  ms/pair median  compilations  GB at 10 %  50 %  100 %  written MB"
    )
    for size in args.sizes or (1_000, 10_000, 100_000, 1_000_000):
        side = round(size**0.5)
        sources, targets = (tasks(side, args.items, args.dim, args.classes, k, n) for k, n in ((0, "s"), (1, "t")))
        with tempfile.TemporaryDirectory() as folder:
            watch, begun = Watch(), time.perf_counter()
            result = tta.scan(sources, targets, f"{folder}/scan", refine=0, progress=watch)
            seconds = time.perf_counter() - begun
            mean, median = watch.seconds_per_pair()
            at = lambda share: watch.marks[int(share * (len(watch.marks) - 1))][2]
            written = sum(p.stat().st_size for p in Path(folder).rglob("*.parquet")) / 1e6
            assert len(result) == side * side
            print(
                f"{side * side:<10} {seconds:7.1f} {watch.before - begun:9.1f} {1e3 * mean:13.4f} {1e3 * median:15.4f} "
                f"{watch.compilations:13} {at(0.1):11.2f} {at(0.5):5.2f} {at(1.0):6.2f} {written:11.1f}", flush=True,
            )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("screen", "refine", "many"))
    parser.add_argument("--tasks", type=int, default=60, help="sources, and as many targets")
    parser.add_argument("--sizes", type=int, nargs="*", help="pairs (many) or items (refine)")
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--best", type=int, default=3, help="sources refined for each target")
    parser.add_argument("--loop", type=int, default=20, help="calls of analyze that are timed")
    args = parser.parse_args()
    {"screen": screen, "refine": refine, "many": many}[args.what](args)


if __name__ == "__main__":
    main()
