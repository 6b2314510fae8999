"""How often intervals cover the figures of a known population.

    python -m benchmarks.coverage                # every setting, 1,000 draws: minutes
    python -m benchmarks.coverage --draws 200

Target items have a class, logits around it, and perhaps a group effect on all items of
a group; source items likewise, with less noise. Figures of the population are those of
200,000 items. Each draw has so many target items, and as many source items but 50 of a
class at least; the nominal level is 95 %. "given": how often there is an interval.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tta_jax.analysis.relatedness import star_intervals
from tta_jax.bounds import intervals, star
from tta_jax.bounds.intervals import ClassLosses
from tta_jax.fitting import relatedness

SIZES = (8, 30, 125, 500)
CLASSES = (2, 10)
FIGURES = ("target_loss", "target_accuracy", "score", "tight")
LEVEL = 0.95
_GROUP = 5  # items
_SOURCE = 50  # source items of a class, at least


class Sample(NamedTuple):
    """Items with their losses for every class, `(n, K)`, and numbers of groups."""

    labels: np.ndarray
    by_class: np.ndarray
    groups: np.ndarray

    @property
    def losses(self) -> np.ndarray:
        return self.by_class[np.arange(len(self.labels)), self.labels]

    @property
    def hits(self) -> np.ndarray:
        return self.by_class.argmin(1) == self.labels


def draw(
    rng: np.random.Generator,
    number: int,
    classes: int,
    grouped: bool,
    margin: float,
    known: bool = True,
) -> Sample:
    """Draw items; without `known` the labels have nothing to do with the logits."""
    labels = rng.integers(classes, size=number)
    logits = rng.normal(size=(number, classes))
    groups = np.arange(number)
    if grouped:
        groups = groups // _GROUP
        # A group has one class and one effect.
        labels = rng.integers(classes, size=groups.max() + 1)[groups]
        logits = 0.6 * logits + rng.normal(size=(groups.max() + 1, classes))[groups]
    if known:
        logits[np.arange(number), labels] += margin
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return Sample(labels, -log_p, groups)


def as_classes(source: Sample, target: Sample) -> list[ClassLosses]:
    """Losses by class; classes that one of both lacks are left out."""
    found = []
    both = np.intersect1d(source.labels, target.labels)
    number = np.isin(target.labels, both).sum()
    for label in both:
        s, t = source.labels == label, target.labels == label
        found.append(
            ClassLosses(
                source.losses[s],
                np.full(s.sum(), t.sum() / number / s.sum()),
                target.losses[t],
                np.full(t.sum(), 1 / number),
                target.hits[t],
                target.by_class[t].astype(np.float32),
                source.groups[s],
                target.groups[t],
                int(label),
            )
        )
    return found


def figures(classes: list[ClassLosses], entropy: float) -> dict[str, float]:
    """Of a sample, or of a population."""
    loss = sum(c.target_mass @ c.target for c in classes)
    tight = 0.0
    for c in classes:
        values = np.concatenate([c.source, c.target])
        order = np.argsort(values, kind="stable")
        q = np.concatenate([c.source_mass, np.zeros(len(c.target))])[order]
        r = np.concatenate([np.zeros(len(c.source)), c.target_mass])[order]
        below = np.minimum(np.cumsum(q), np.cumsum(r))
        below[-1] = c.target_mass.sum()
        tight += np.diff(below, prepend=0.0) @ values[order]
    return {
        "target_loss": loss,
        "target_accuracy": sum(c.target_mass @ c.hits for c in classes),
        "score": 1 - loss / entropy,
        "tight": tight,
    }


def coverage(
    size: int, classes: int, grouped: bool, draws: int, seed: int = 0
) -> dict[str, float]:
    """Share of draws whose interval covers the population's figure."""
    rng = np.random.default_rng([seed, size, classes, grouped])
    margin = 4.0 if classes == 2 else 3.5
    entropy = float(np.log(classes))

    def pair(number, source):
        return (
            draw(rng, source, classes, grouped, margin + 0.5),
            draw(rng, number, classes, grouped, margin),
        )

    true = figures(as_classes(*pair(200_000, 200_000)), entropy)
    inside, given = dict.fromkeys(FIGURES, 0), 0
    for _ in range(draws):
        sample = as_classes(*pair(size, max(size, _SOURCE * classes)))
        if not sample:
            continue
        found = intervals.bootstrap(sample, entropy, rng, 300, LEVEL).limits
        given += bool(found)
        for name, (low, high) in found.items():
            inside[name] += low <= true[name] <= high
    shares = {name: count / max(given, 1) for name, count in inside.items()}
    return shares | {"given": given / draws}


def _placed(sample: Sample) -> relatedness.Branches:
    """Items on the branch of their most probable class."""
    certainty = np.exp(-sample.by_class.min(1))
    branch = sample.by_class.argmin(1).astype(np.int32)
    there = np.ones(len(branch), bool)
    return relatedness.Branches(
        branch, certainty, sample.labels.astype(np.int32), there
    )


@partial(jax.jit, static_argnames=("classes",))
def _star_sample(source, target, classes: int) -> relatedness.StarSample:
    """Both tasks in the star of a classifier that was fixed before."""
    items = relatedness.balanced_items(source, target, classes)
    cut = jnp.array([1 / classes, 1.0])
    placed = [x._replace(radius=star.star_radius(x.radius, cut)) for x in items]
    prior = jnp.full(classes, -jnp.log(classes))
    return relatedness.StarSample(*placed, prior, jnp.asarray(3.0))


_star_figures = jax.jit(lambda sample: star.star_figures(*sample))
_star_chains = jax.jit(jax.vmap(lambda sample: star.star_chain(*sample)))


def star_coverage(
    size: int, classes: int, grouped: bool, draws: int
) -> tuple[float, float]:
    """Share of draws whose interval covers the population's `directed` in the star, and
    how often there is an interval.
    """
    rng = np.random.default_rng([2, size, classes, grouped])

    def pair(number, source):
        return (
            draw(rng, source, classes, grouped, 4.0),
            draw(rng, number, classes, grouped, 3.5),
        )

    with jax.enable_x64(True):
        whole = [_placed(x) for x in pair(200_000, 200_000)]
        true = float(_star_figures(_star_sample(*whole, classes)).directed)
        inside = given = 0
        for _ in range(draws):
            source, target = pair(size, max(size, _SOURCE * classes))
            sample = _star_sample(_placed(source), _placed(target), classes)
            both = jax.tree.map(lambda v: np.stack([v, v]), sample)
            groups = source.groups, target.groups
            chains = _star_chains(both)
            found = star_intervals(both, chains, groups, rng, 300, LEVEL)
            if found:
                given += 1
                low, high = found["directed"]
                inside += low <= true <= high
    return inside / max(given, 1), given / draws


def informative_by_chance(size: int, classes: int, draws: int) -> float:
    """Share of tasks with random labels that are called informative."""
    rng = np.random.default_rng([1, size, classes])
    entropy, called = float(np.log(classes)), 0
    for _ in range(draws):
        source = draw(rng, size, classes, False, 3.0)
        target = draw(rng, size, classes, False, 0.0, known=False)
        # Calibrated, as a classifier is that learned nothing: near the class shares.
        target = target._replace(by_class=0.1 * target.by_class + 0.9 * entropy)
        sample = as_classes(source, target)
        if sample:
            found = intervals.bootstrap(sample, entropy, rng, 300, LEVEL)
            called += found.informative == "yes"
    return called / draws


def _losses(rng: np.random.Generator, name: str, n: int, clip: float) -> np.ndarray:
    """Losses of five kinds of classifiers, clipped."""
    values = {
        "exponential": lambda: rng.exponential(0.6, n),
        "mostly right": lambda: np.where(
            rng.random(n) < 0.9, rng.exponential(0.05, n), rng.uniform(1, clip, n)
        ),
        "uniform": lambda: rng.uniform(0, 1.5, n),
        "lognormal": lambda: np.exp(rng.normal(-1, 1, n)),
        "two values": lambda: np.where(rng.random(n) < 0.2, 0.7 * clip, 0.05),
    }
    return np.minimum(values[name](), clip)


KINDS = ("exponential", "mostly right", "uniform", "lognormal", "two values")


def chernoff(mean: float, n: int, delta: float) -> float:
    """The yardstick: the largest p with `n kl(mean, p) <= ln(1 / delta)`."""

    def distance(p):
        first = mean * np.log(mean / p) if mean > 0 else 0.0
        return n * (first + (1 - mean) * np.log((1 - mean) / (1 - p)))

    low, high = mean, 1 - 1e-12
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (low, middle) if distance(middle) > np.log(1 / delta) else (middle, high)
        )
    return high


def population(n: int, draws: int) -> tuple[float, float, float]:
    """Mean excess over the true mean of the population bound and of the yardstick,
    nats, and the share of draws that are covered; over five kinds of losses of eight
    classes.
    """
    clip, rng = 2 * float(np.log(8)), np.random.default_rng(n)
    ours, theirs, covered = [], [], []
    for name in KINDS:
        true = _losses(rng, name, 2_000_000, clip).mean()
        for _ in range(draws):
            values = _losses(rng, name, n, clip)
            bound = intervals.population_bound(values, clip, LEVEL)
            ours.append(bound - true)
            theirs.append(clip * chernoff(values.mean() / clip, n, 1 - LEVEL) - true)
            covered.append(bound >= true)
    return float(np.mean(ours)), float(np.mean(theirs)), float(np.mean(covered))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=1000, metavar="N")
    args = parser.parse_args()
    begun = time.perf_counter()
    print(f"coverage of nominal {LEVEL:.0%} intervals, {args.draws} draws each")
    names = (*FIGURES, "given")
    print(f"{'K':>3} {'groups':>6} {'items':>6}  " + "  ".join(names))
    for classes in CLASSES:
        for grouped in (False, True):
            for size in SIZES:
                found = coverage(size, classes, grouped, args.draws)
                cells = (f"{found[n]:>{len(n)}.3f}" for n in names)
                kind = "of 5" if grouped else "none"
                print(f"{classes:>3} {kind:>6} {size:>6}  " + "  ".join(cells))
    few = max(args.draws // 5, 1)
    print(f"directed in the star, {few} draws each: coverage, given")
    for classes in CLASSES:
        for grouped in (False, True):
            for size in SIZES:
                covered, given = star_coverage(size, classes, grouped, few)
                kind = "of 5" if grouped else "none"
                print(f"{classes:>3} {kind:>6} {size:>6}  {covered:.3f}  {given:.3f}")
    for classes in CLASSES:
        share = informative_by_chance(100, classes, args.draws)
        print(f"random labels, K = {classes}, 100 items: informative in {share:.3f}")
    for n in (50, 250, 1000):
        ours, theirs, covered = population(n, few)
        print(
            f"population bound, {n} items: {ours:.3f} nats above the mean, Chernoff "
            f"{theirs:.3f}, ratio {ours / theirs:.2f}; covers {covered:.3f}"
        )
    print(f"{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
