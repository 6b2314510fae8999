"""How related a source is to a target: the chain of bounds in the star, on held-out
items (docs/theory.md, section 5.2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from tta_jax._internal.padding import geometric_bucket
from tta_jax._internal.serialization import storable
from tta_jax._internal.typing import Array, ArrayLike
from tta_jax.bounds import intervals, star
from tta_jax.bounds.capped import capped_directed
from tta_jax.bounds.certificate import (
    Certificate,
    Evaluation,
    Interval,
    chain_holds,
)
from tta_jax.bounds.chain import RUNGS, Bound
from tta_jax.bounds.intervals import PseudoObservations
from tta_jax.config import Config
from tta_jax.fitting.learn import Learned
from tta_jax.fitting.relatedness import (
    LabelledLogits,
    StarChoice,
    StarFit,
    StarSample,
    branches,
    pool_parts,
)
from tta_jax.tasks.splits import Seed
from tta_jax.tasks.task import Task

# Items of a source class may weigh so much more than with equal weights.
CAP = 1.25
_TOGETHER = 100  # replicates


@storable
@dataclasses.dataclass(frozen=True)
class StarSettings:
    """What was chosen for a star, on the items that learn.

    Attributes:
      source_cut, target_cut: the probabilities of the most probable class between which
        the distance from the centre rises from 0 to 1.
      scale: of the logits; 0 where nothing was below guessing.
    """

    source_cut: tuple[float, float]
    target_cut: tuple[float, float]
    scale: float


@storable
@dataclasses.dataclass(frozen=True)
class Relatedness:
    """How related the source is to the target, on the held-out items of all folds
    together.

    Attributes:
      bound: the chain of the star in which `directed` was least; `oscillation`,
        `lipschitz` and `theorem` are equal. Its losses are those of the star's own
        classifier.
      certificate: of that chain; its distances are exact.
      theorem_bound: the chain of the star in which `theorem` was least.
      intervals: `value`, `directed`, `theorem`, `target_loss`, `target_accuracy` ->
        (low, high), bootstrap.
      level: of the intervals.
      capped: `directed` with source items that may weigh up to `cap` times as much as
        the others of their class, nats: a diagnosis.
      cap: R, the largest weight, in equal weights.
      assignment: the source class of each target class, one to one.
      settings, theorem_settings: of both stars, fitted to all that learns.
      items: labelled target items evaluated.
    """

    bound: Bound
    certificate: Certificate
    theorem_bound: Bound
    intervals: dict[str, tuple[float, float]]
    level: float
    capped: float
    cap: float
    assignment: tuple[int, ...]
    settings: StarSettings
    theorem_settings: StarSettings
    items: int

    @property
    def value(self) -> float:
        """`1 - directed / H(p_T)`: 1 where nothing is lost, 0 or less where the source
        says nothing; NaN when `H(p_T) = 0`.
        """
        entropy = self.bound.prior_entropy
        return 1 - self.bound.directed / entropy if entropy > 0 else float("nan")

    @property
    def informative_rungs(self) -> tuple[str, ...]:
        """Rungs below `H(p_T)`, `theorem` of its own star."""
        rungs = [name for name in ("tight", "directed") if self._says(self.bound, name)]
        return (*rungs, *(["theorem"] if self._says(self.theorem_bound) else []))

    @staticmethod
    def _says(bound: Bound, name: str = "theorem") -> bool:
        return bool(getattr(bound, name) < bound.prior_entropy)


class HeldStar(NamedTuple):
    """Held-out items of one split as the star takes them, float64 on the host.

    Attributes:
      source, target: logits and labels of the target's classes.
      groups_s, groups_t: `(n,)` int32, items that are drawn together.
      fit: the star.
      log_prior: `(K_T,)`, log p_T of the learning part.
    """

    source: LabelledLogits
    target: LabelledLogits
    groups_s: np.ndarray
    groups_t: np.ndarray
    fit: StarFit
    log_prior: np.ndarray


def held_star(
    learned: Learned,
    source: Task,
    target: Task,
    groups: tuple[np.ndarray, np.ndarray],
) -> HeldStar:
    """Compute the logits of held-out items by both tasks' own classifiers.

    Args:
      learned: of the split.
      source, target: held-out items, labelled.
      groups: `split_groups` of both.
    """

    def wide(v):
        return np.asarray(v, np.float64)

    classes = learned.star.classes
    there = np.asarray(classes.target_mask)
    place = np.full(source.num_classes, -1)
    place[np.asarray(classes.source_class)[there]] = np.flatnonzero(there)
    rows_s = place[np.asarray(source.labels)] >= 0
    mine = source.take(rows_s)
    _, first, inverse = np.unique(
        groups[0][rows_s], return_index=True, return_inverse=True
    )
    weight = wide(learned.source_head.weight)[classes.source_class]
    bias = wide(learned.source_head.bias)[classes.source_class] + wide(classes.shift)
    rows = wide(learned.source_scaler(np.asarray(mine.features)))
    theirs = wide(learned.target_scaler(np.asarray(target.features)))
    probe = learned.probe
    return HeldStar(
        source=LabelledLogits(
            rows @ weight.T + bias,
            place[np.asarray(mine.labels)].astype(np.int32),
            np.ones(len(mine), bool),
        ),
        target=LabelledLogits(
            theirs @ wide(probe.weight).T + wide(probe.bias),
            np.asarray(target.labels, np.int32),
            np.ones(len(target), bool),
        ),
        groups_s=first[inverse].astype(np.int32),
        groups_t=groups[1].astype(np.int32),
        fit=learned.star,
        log_prior=wide(learned.log_prior),
    )


class PooledStar(NamedTuple):
    """The items of all splits together in both stars, on the host: that chosen for
    `directed`, and that for `theorem` (leading axis).

    Attributes:
      bounds: the chains.
      samples: the items.
      losses: of the source items, `(2, n)`.
      groups_s, groups_t: `(n,)` and `(m,)`, items that are drawn together.
    """

    bounds: Bound
    samples: StarSample
    losses: np.ndarray
    groups_s: np.ndarray
    groups_t: np.ndarray


def pool(parts: Sequence[HeldStar]) -> PooledStar | None:
    """Evaluate both stars on the items of all splits together.

    Returns:
      None where the source has fewer classes than the target.
    """
    if not all(bool(part.fit.classes.possible) for part in parts):
        return None
    *arguments, groups_s, groups_t = _stacked(parts)
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        bounds, samples, losses = jax.device_get(_evaluate(*arguments))
    return PooledStar(bounds, samples, losses, groups_s, groups_t)


def relate(
    pooled: PooledStar,
    final: StarFit,
    config: Config,
    seed: Seed,
) -> Relatedness:
    """Describe how related the source is.

    Args:
      pooled: held-out items of all splits.
      final: the star fitted to all that learns.
      config: `bootstrap` and `interval` count.
      seed: of the intervals.
    """
    bounds, samples, losses, groups_s, groups_t = pooled
    rng = np.random.default_rng(seed)
    sample = jax.tree.map(lambda v: v[0], samples)
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        limits = star_intervals(
            samples,
            bounds,
            (groups_s, groups_t),
            rng,
            config.bootstrap,
            config.interval,
        )
    bound, theorem_bound = (
        jax.tree.map(lambda v, k=k: float(v[k]), bounds) for k in (0, 1)
    )
    return Relatedness(
        bound=bound,
        certificate=_certificate([bound, theorem_bound]),
        theorem_bound=theorem_bound,
        intervals=limits,
        level=config.interval,
        capped=capped_directed(
            sample.source, sample.target, losses[0], float(sample.scale), CAP
        ),
        cap=CAP,
        assignment=tuple(int(k) for k in final.classes.source_class),
        settings=_settings(final.directed),
        theorem_settings=_settings(final.theorem),
        items=int((sample.target.mass > 0).sum()),
    )


def evaluate_star(
    pooled: PooledStar, objective: str, covers: str = "the labels given"
) -> Evaluation:
    """Take the star of an objective as the classifier that is evaluated.

    Args:
      pooled: its items.
      objective: "directed" or "theorem".
      covers: what the labels are.
    """
    at = ("directed", "theorem").index(objective)
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        sample = jax.tree.map(lambda v: v[at], pooled.samples)
        by_class = np.asarray(_losses_by_class(sample))
    source, target = sample.source, sample.target
    hits = by_class.argmin(axis=1) == target.labels
    own = by_class[np.arange(len(hits)), target.labels]
    classes = []
    for label in range(len(sample.log_prior)):
        mine = (source.labels == label) & (source.mass > 0)
        theirs = (target.labels == label) & (target.mass > 0)
        if theirs.any():
            classes.append(
                intervals.ClassLosses(
                    source=pooled.losses[at][mine],
                    source_mass=source.mass[mine],
                    target=own[theirs],
                    target_mass=target.mass[theirs],
                    hits=hits[theirs],
                    by_class=by_class[theirs].astype(np.float32),
                    source_groups=pooled.groups_s[mine],
                    target_groups=pooled.groups_t[theirs],
                    label=label,
                )
            )
    bound = jax.tree.map(lambda v: float(v[at]), pooled.bounds)
    return Evaluation(bound, _certificate([bound], covers), classes)


@jax.jit
def _losses_by_class(sample: StarSample) -> Float[Array, "m K"]:
    """Losses of the target items for every class."""
    labels = jnp.arange(len(sample.log_prior), dtype=jnp.int32)

    def of(label):
        items = sample.target._replace(
            labels=jnp.full_like(sample.target.labels, label)
        )
        return star.star_losses(items, sample.log_prior, sample.scale)

    return jax.vmap(of)(labels).T


def star_intervals(
    samples: StarSample,
    bounds: Bound,
    groups: tuple[np.ndarray, np.ndarray],
    rng: np.random.Generator,
    replicates: int,
    level: float,
) -> dict[str, tuple[float, float]]:
    """Compute intervals of figures in two stars of the same items, on the host.

    Args:
      samples: of the star of `directed`, and of that of `theorem` (leading axis).
      bounds: their chains.
      groups: of source and target items, numbers of what is drawn together.
      rng: draws the weights.
      replicates, level: as for `intervals.bootstrap`.

    Returns:
      As in `Relatedness`; empty for fewer than 3 groups, or without replicates.
    """
    sample = jax.tree.map(lambda v: np.asarray(v)[0], samples)
    there = sample.target.mass > 0
    together = len(np.unique(groups[1][there]))
    if not replicates or together < intervals.LEAST_GROUPS:
        return {}
    drawn = [
        _draw(sample, *groups, together, rng)
        for _ in range(-(-replicates // _TOGETHER))
    ]
    found = [jax.device_get(_replicates(samples, one)) for one in drawn]
    draws = jax.tree.map(lambda *v: np.concatenate(v, axis=1)[:, :replicates], *found)
    classes = len(np.unique(sample.target.labels[there]))
    return _limits(draws, bounds, together, classes, level)


def _limits(
    draws: _Draws, bounds: Bound, groups: int, classes: int, level: float
) -> dict[str, tuple[float, float]]:
    """Percentile intervals, of distances without their bias.

    Args:
      draws: of both stars.
      bounds: of both stars (leading axis).
      groups, classes: how many groups and classes of target items there are.
      level: of the intervals.
    """
    entropy, loss = float(bounds.prior_entropy[0]), np.asarray(draws.target_loss)
    items = groups / classes
    found = {}
    for k, name in enumerate(("directed", "theorem")):
        values, own = getattr(draws, name)[k], getattr(bounds, name)[k]
        excess = intervals.without_bias(
            values - loss[k], float(own - bounds.target_loss[k]), items
        )
        found[name] = intervals.ends(loss[k] + excess[0], loss[k] + excess[1], level)
    low, high = found["directed"]
    accuracy = np.asarray(draws.target_accuracy)[0]
    nothing = (float("nan"), float("nan"))
    value = (1 - high / entropy, 1 - low / entropy) if entropy > 0 else nothing
    return found | {
        "value": value,
        "target_loss": intervals.ends(loss[0], loss[0], level),
        "target_accuracy": intervals.ends(accuracy, accuracy, level),
    }


def _settings(choice: StarChoice) -> StarSettings:
    def pair(cut):
        return float(cut[0]), float(cut[1])

    return StarSettings(
        pair(choice.source_cut), pair(choice.target_cut), float(choice.scale)
    )


def _certificate(
    bounds: Sequence[Bound], covers: str = "the labels given"
) -> Certificate:
    """Certify the first of some chains, which all have to hold; every distance is known
    exactly, so upper and lower values are equal.
    """
    bound = bounds[0]

    def exact(value):
        return Interval(value, value)

    tight = exact(bound.tight - bound.transformed_source_loss)
    symmetric = exact(bound.oscillation_wasserstein)

    chains = (
        [chain.target_loss, *(getattr(chain, name) for name in RUNGS)]
        for chain in bounds
    )
    return Certificate(
        tight=tight,
        directed=exact(bound.directed_wasserstein),
        oscillation=symmetric,
        lipschitz=symmetric,
        theorem=symmetric,
        target_loss=bound.target_loss,
        holds=all(bool(chain_holds(chain)) for chain in chains),
        reasons={},
        covers=covers,
        iterations=(0, 0, 0),
        marginal_error=0.0,
    )


def _stacked(parts: Sequence[HeldStar]) -> tuple:
    """Padded and stacked, with groups that are numbered through."""

    def role(items, groups):
        size = geometric_bucket(max(len(x.labels) for x in items), 2)

        def pad(v):
            return np.pad(v, [(0, size - len(v))] + [(0, 0)] * (v.ndim - 1))

        stacked = jax.tree.map(lambda *v: np.stack([pad(one) for one in v]), *items)
        # Padding has a group of its own, the last place of each part.
        numbers = [
            np.pad(g, (0, size - len(g)), constant_values=size - 1) + k * size
            for k, g in enumerate(groups)
        ]
        return stacked, np.concatenate(numbers)

    source, groups_s = role([p.source for p in parts], [p.groups_s for p in parts])
    target, groups_t = role([p.target for p in parts], [p.groups_t for p in parts])

    def wide(v):
        v = np.asarray(v)
        return v.astype(np.float64) if v.dtype.kind == "f" else v

    fits = jax.tree.map(
        lambda *v: np.stack([wide(one) for one in v]), *(p.fit for p in parts)
    )
    log_prior = np.stack([p.log_prior for p in parts])
    return source, target, fits, log_prior, groups_s, groups_t


class _Draws(NamedTuple):
    """Figures of replicates, `(2, replicates)`: of the star chosen for `directed`, and
    of that chosen for `theorem`.
    """

    directed: Array
    theorem: Array
    target_loss: Array
    target_accuracy: Array


class Resample(NamedTuple):
    """Random numbers of some replicates.

    Attributes:
      source, target: `(n,)` and `(m,)`, weights of the items.
      more: the pseudo-observations.
    """

    source: ArrayLike
    target: ArrayLike
    more: PseudoObservations


@jax.jit
def _evaluate(
    source: LabelledLogits,
    target: LabelledLogits,
    fits: StarFit,
    log_prior: Float[Array, "parts K"],
) -> tuple[Bound, StarSample, Float[Array, "2 n"]]:
    """Both chains, samples and losses of their source items, with a leading axis: of
    `directed`, of `theorem`.
    """
    there = fits.classes.target_mask
    mine, theirs = (jax.vmap(branches)(items, there) for items in (source, target))
    choices = jax.tree.map(lambda *v: jnp.stack(v), fits.directed, fits.theorem)

    def one(choice):
        sample = pool_parts(mine, theirs, choice, log_prior)
        losses = star.star_losses(sample.source, sample.log_prior, sample.scale)
        return star.star_chain(*sample), sample, losses

    return jax.vmap(one)(choices)


@jax.jit
def _replicates(samples: StarSample, draws: Resample) -> _Draws:
    """Figures of some replicates (leading axis of `draws`) of both samples."""

    def one(drawn, sample):
        found = star.star_figures(*resampled(sample, drawn))
        return _Draws(
            found.directed, found.theorem, found.target_loss, found.target_accuracy
        )

    both = jax.vmap(one, in_axes=(None, 0))
    found = jax.lax.map(lambda x: both(x, samples), draws)
    return jax.tree.map(lambda v: v.T, found)


def resampled(sample: StarSample, drawn: Resample) -> StarSample:
    """Compute one replicate of the Bayesian bootstrap, with a pseudo-observation.

    Args:
      sample: of both tasks.
      drawn: the random numbers of the replicate.
    """
    source, target = sample.source, sample.target
    size = len(sample.log_prior)
    more = star.StarItems(
        target.branch[drawn.more.at],
        target.radius[drawn.more.at],
        jnp.asarray(drawn.more.label),
        jnp.asarray(drawn.more.mass),
    )
    theirs = target._replace(mass=target.mass * drawn.target)
    theirs = jax.tree.map(lambda v, one: jnp.append(v, one), theirs, more)
    theirs = theirs._replace(mass=theirs.mass / jnp.sum(theirs.mass))
    mine = source.mass * drawn.source

    def of_class(items, mass):
        return jax.ops.segment_sum(mass, items.labels, size)

    have = of_class(source, mine)
    factor = of_class(theirs, theirs.mass) / jnp.where(have > 0, have, 1.0)
    mine = source._replace(mass=mine * factor[source.labels])
    return sample._replace(source=mine, target=theirs)


def _draw(
    sample: StarSample,
    groups_s: np.ndarray,
    groups_t: np.ndarray,
    number: int,
    rng: np.random.Generator,
) -> Resample:
    """Random numbers of some replicates: exponential weights of groups, and a target
    item drawn with equal probability with a class drawn by the shares, as heavy as one
    of `number` groups.
    """
    replicates = _TOGETHER

    def weights(groups):
        return rng.standard_exponential((replicates, len(groups)))[:, groups]

    target = sample.target
    there = np.flatnonzero(target.mass > 0)
    share = np.bincount(target.labels, target.mass, minlength=len(sample.log_prior))
    return Resample(
        source=weights(groups_s),
        target=weights(groups_t),
        more=PseudoObservations.draw(rng, replicates, there, share, number),
    )
