"""How good `tta.choose` is: what it picks, what it saves, what it claims.

    python -m benchmarks.choose null power       # made-up encoders: minutes
    python -m benchmarks.choose targets          # the study's frozen encoders
    python -m benchmarks.choose speed            # 5,000 pictures, three encoders

null: two copies of one encoder with different noise, until sure: how often they are
declared different. power: two encoders whose losses differ by twice the margin: how
often they are told apart before 4,000 items, and the better one is taken.

targets: on each target of the study, a third of the items is kept aside. The race runs
on the others, with ready features that cost what the encoder took for an item. Accuracy
is that of a linear probe that learned from all items of the race, on those kept aside,
corrected for chance. Beside it: the best encoder by as many items of each as the race's
cost would buy uniformly (linear probes, a quarter held out), and by LogME on
everything. Features are those that `python -m benchmarks.study features` has made.

speed: the same pictures encoded whole by each encoder, and chosen among, with nothing
kept, in turns.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import tta_jax as tta
from tta_jax.data import extract_features, load_encoder, load_features, open_data
from tta_jax.data.prepare import prepare_task
from tta_jax.probes import ground_truth
from tta_jax.selection.race import MARGINS
from tta_jax.tasks.task import Task

FEATURES = Path(__file__).parent / ".cache" / "study" / "features"
PICTURES = (
    "efficientnet-lite0",
    "efficientnet-lite1",
    "efficientnet-lite2",
    "squeezenet",
)
TEXTS = ("minilm", "word-vectors")
# With the picture encoders: eight candidates.
TRAINED = tuple(
    f"cnn-of-{name}" for name in ("digits", "mnist-5k", "fashion-mnist", "photo-stamps")
)
TARGETS = {
    PICTURES: (
        "digits",
        "mnist-5k",
        "mnist-rotated",
        "mnist-blurred",
        "fashion-rotated",
        "solar-cells",
        "photo-stamps",
    ),
    TEXTS: (
        "20newsgroups-comp",
        "20newsgroups-rec",
        "20newsgroups-sci",
        "20newsgroups-talk",
        "reuters-r8",
        "election-tweets",
        "comp-rec-b",
        "comp-sci-b",
        "comp-talk-b",
        "rec-sci-b",
        "rec-talk-b",
        "sci-talk-b",
    ),
}
# Milliseconds an item on two cores; of the CNN about as much as a word vector.
MILLISECONDS = {
    "efficientnet-lite0": 20.0,
    "efficientnet-lite1": 26.3,
    "efficientnet-lite2": 35.0,
    "squeezenet": 10.9,
    "minilm": 41.1,
    "word-vectors": 1.3,
}
_CNN = 1.0
_DIM, _CLASSES = 16, 5


class Population:
    """Encoders of one population that differ in noise."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.centres = self.rng.normal(size=(_CLASSES, _DIM)) * 0.75

    def draw(self, number: int, noises: tuple[float, ...]) -> list[Task]:
        """The same items under each encoder.

        Args:
          number: of items.
          noises: standard deviation of each encoder's own noise.
        """
        labels = self.rng.integers(_CLASSES, size=number)
        shared = self.centres[labels] + self.rng.normal(size=(number, _DIM))
        return [
            Task.from_arrays(
                (shared + noise * self.rng.normal(size=shared.shape)).astype(
                    np.float32
                ),
                labels,
                name="made up",
            )
            for noise in noises
        ]

    def gap(self, noises: tuple[float, float], items: int) -> float:
        """How much larger the second one's loss is, in shares of guessing's.

        Args:
          noises: of two encoders.
          items: that classifiers learn from; they are judged on 40,000 others.
        """
        tasks = self.draw(items + 40_000, noises)
        seen, rest = np.arange(items), np.arange(items, items + 40_000)
        first, second = tta.linear_probe(
            [task.take(seen) for task in tasks], [task.take(rest) for task in tasks]
        )
        return (second.loss - first.loss) / first.prior_entropy


def null(draws: int, items: int) -> None:
    """Two copies of one encoder with different noise."""
    different, seen = 0, []
    for draw in range(draws):
        first, second = Population(draw).draw(items, (0.7, 0.7))
        found = tta.choose(
            features={"a": first, "b": second},
            until="sure",
            key=jax.random.key(draw),
        )
        different += len(found.equivalent) < 2
        seen.append(found.seen)
    print(
        f"null: {different} of {draws} draws declared different "
        f"({different / draws:.3f}); {np.mean(seen):.0f} items on average"
    )


def power(draws: int, items: int) -> None:
    """Two encoders whose losses differ by twice the margin."""
    wanted, low, high = 2 * MARGINS["loss"], 0.7, 2.0
    for _ in range(12):
        middle = (low + high) / 2
        gap = np.mean([Population(k).gap((0.7, middle), items) for k in range(4)])
        low, high = (low, middle) if gap > wanted else (middle, high)
    told, right, seen = 0, 0, []
    for draw in range(draws):
        first, second = Population(draw).draw(items, (0.7, high))
        found = tta.choose(
            features={"a": first, "b": second},
            until="sure",
            key=jax.random.key(draw),
        )
        told += found.equivalent == ("a",)
        right += found.best == "a"
        seen.append(found.seen)
    print(
        f"power: differing by {gap:.4f} of guessing's loss after {items} items; told "
        f"apart in {told} of {draws} draws ({told / draws:.3f}), the better one taken "
        f"in {right}; {np.mean(seen):.0f} items on average"
    )


def targets(seed: int) -> None:
    """What a race picks and costs on the study's targets."""
    from tta_jax.cli._terminal import print_table

    for names, all_targets in TARGETS.items():
        more = [(), TRAINED] if names == PICTURES else [()]
        for others in more:
            rows = [_target(t, (*names, *others), seed) for t in all_targets]
            mean = {
                k: float(np.mean([row[k] for row in rows]))
                for k, v in rows[0].items()
                if isinstance(v, float)
            }
            rows.append(dict.fromkeys(rows[0], "") | {"target": "mean"} | mean)
            shown = [
                {k: f"{v:.3f}" if isinstance(v, float) else v for k, v in row.items()}
                for row in rows
            ]
            print_table(
                shown, f"{len(names) + len(others)} candidates", left=("target",)
            )
            print(flush=True)
            jax.clear_caches()


def _target(target: str, names: tuple[str, ...], seed: int) -> dict[str, Any]:
    tasks = {
        name: load_features(FEATURES / name / f"{target}.target.npz").task(target)
        for name in names
        if (FEATURES / name / f"{target}.target.npz").is_file()
    }
    first = next(iter(tasks.values()))
    # Items and labels decide, not what an encoder makes of them.
    numbers = Task.from_arrays(
        np.arange(len(first), dtype=np.float32)[:, None],
        first.labels,
        groups=first.groups,
    )
    raced, aside = numbers.split(1 / 3, jax.random.key(seed))
    learn = {name: task.take(raced) for name, task in tasks.items()}
    judged = [tasks[name].take(aside) for name in tasks]
    costs = {name: MILLISECONDS.get(name, _CNN) / 1000 for name in tasks}
    found = tta.choose(features=learn, costs=costs, key=jax.random.key(seed))
    truth = tta.linear_probe(list(learn.values()), judged)
    chance = 1 / first.num_classes
    reached = {
        name: (one.accuracy - chance) / (1 - chance)
        for name, one in zip(tasks, truth, strict=True)
    }
    best = max(reached, key=lambda name: reached[name])
    spent = sum(one.items * costs[one.name] for one in found.candidates)
    share = spent / (len(raced) * sum(costs.values()))
    logme = max(learn, key=lambda name: _logme(learn[name]))
    uniform = _uniform(learn, share, seed)
    return {
        "target": target,
        "items": str(len(raced)),
        "taken": found.best,
        "best": best,
        "lost": reached[best] - reached[found.best],
        "best among equivalent": float(best in found.equivalent),
        "equivalent": float(len(found.equivalent)),
        "cost": share,
        "uniform lost": reached[best] - reached[uniform],
        "LogME lost": reached[best] - reached[logme],
    }


def _logme(task: Task) -> float:
    return float(tta.metrics.logme(task.features, task.labels))


def _uniform(learn: dict[str, Task], share: float, seed: int) -> str:
    """The best by probes on as many items of each as the same cost buys."""
    size = len(next(iter(learn.values())))
    number = max(20, int(share * size))
    some = np.random.default_rng(seed).permutation(size)[:number]
    rows, _ = ground_truth(
        [task.take(np.sort(some)) for task in learn.values()],
        key=jax.random.key(seed),
    )
    losses = [np.inf if row["loss"] is None else row["loss"] for row in rows]
    return list(learn)[int(np.argmin(losses))]


def speed(items: int) -> None:
    """Choosing among three encoders, and encoding everything with all of them."""
    prepare_task("mnist-5k")
    data = open_data("mnist-5k").limit(items)
    names = ("squeezenet", "efficientnet-lite0", "efficientnet-lite1")
    for name in names:  # compile
        extract_features(
            load_encoder(name), data.limit(64), cache=False, on_error="skip"
        )
    begin = time.perf_counter()
    found = tta.choose(data, list(names), cache=False)
    chosen = time.perf_counter() - begin
    print(found.summary())
    whole = 0.0
    for name in names:
        begin = time.perf_counter()
        extract_features(load_encoder(name), data, cache=False)
        spent = time.perf_counter() - begin
        whole += spent
        print(f"{name}: {1000 * spent / len(data):.1f} ms an item")
    print(
        f"speed: {chosen:.1f} s to choose, {whole:.1f} s to encode {len(data)} "
        f"pictures with all {len(names)}; ratio {chosen / whole:.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="+", choices=("null", "power", "targets", "speed")
    )
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--items", type=int, help="of null and power, and of speed")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    for part in args.parts:
        begin = time.perf_counter()
        if part == "null":
            null(args.draws, args.items or 4000)
        elif part == "power":
            power(args.draws, args.items or 4000)
        elif part == "targets":
            targets(args.seed)
        else:
            speed(args.items or 5000)
        print(f"{part}: {time.perf_counter() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
