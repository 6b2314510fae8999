"""`analyze`: a pair of tasks in, an `Analysis` out. Hold-out, cross-fitting, the order
of the steps; no mathematics.
"""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from tta_jax import archive, intervals, maps
from tta_jax.ahead import in_background
from tta_jax.archive import storable
from tta_jax.bound import RUNGS, Bound, Transforms
from tta_jax.certificate import (
    Certificate,
    Evaluation,
    Interval,
    Room,
    certify,
    foreseen_rooms,
    rehearse,
)
from tta_jax.config import Config
from tta_jax.head import SoftmaxHead
from tta_jax.learn import Clock, Learned, closed_form_sizes, learn, predict, relabelled
from tta_jax.optimise import compile_closed_form
from tta_jax.probe import loss_and_accuracy
from tta_jax.task import (
    Samples,
    Seed,
    Standardizer,
    Task,
    child,
    seed_of,
    shared_rows,
    thinned,
)

Array = jax.Array

for _kind in (SoftmaxHead, Standardizer, *maps.FeatureMap.__subclasses__()):
    storable(_kind)


@storable
@dataclasses.dataclass(frozen=True)
class Probe:
    """A ridge probe on the target alone (no source): what the same labels give without
    any transfer.
    """

    loss: float
    accuracy: float


@storable
@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Figures on samples of both tasks that took no part in learning; means over folds
    where there are folds.

    Attributes:
      bound, certificate: as in the analysis.
      intervals: `target_loss`, `target_accuracy`, `tight`, `score` -> (low, high),
        bootstrap.
      level: of the intervals.
      probe: the source-free ridge probe on the same samples.
      items: labelled target items evaluated.
      population: for `Config(confidence=...)`: level, clip (nats) and the upper bound
        of the expected clipped loss at the class shares of the items evaluated; None
        without it and with groups, whose items are not independent.
      folds: number of parts that were evaluated in turn, 1 for a single hold-out.
    """

    bound: Bound
    certificate: Certificate
    intervals: dict[str, tuple[float, float]]
    level: float
    probe: Probe
    items: int
    population: dict[str, float] | None
    folds: int


@storable
@dataclasses.dataclass(frozen=True)
class Analysis:
    """What `analyze` found.

    Attributes:
      bound: the chain on the learning part (in sample).
      certificate: its certificate.
      held_out: the honest figures; None with `holdout=0` and no folds, or without
        target labels.
      transforms: class prior, label mixing, coupling, feature map; the map acts on
        `source_scaler(features)` and gives `target_scaler(features)`.
      head: the head that was used, on `source_scaler(features)`; your own one
        unchanged, whose `source_scaler` is the identity.
      probe: source-free ridge probe, in sample.
      info: what the optimiser recorded, arrays by name.
      stopped: why learning ended where it did.
      timings: seconds by phase.
      warnings: what a reader should know.
      covers: what the labels are against which losses are counted.
    """

    bound: Bound
    certificate: Certificate
    held_out: HeldOut | None
    transforms: Transforms
    head: SoftmaxHead
    source_scaler: Standardizer
    target_scaler: Standardizer
    probe: Probe
    info: dict[str, Any]
    stopped: str
    timings: dict[str, float]
    versions: dict[str, str]
    config: Config
    source_name: str
    target_name: str
    source_classes: tuple[Hashable, ...]
    target_classes: tuple[Hashable, ...]
    sizes: dict[str, int]
    warnings: tuple[str, ...]
    covers: str

    @property
    def _figures(self) -> Bound:
        return self.bound if self.held_out is None else self.held_out.bound

    @property
    def holds(self) -> bool:
        """Whether every chain that was evaluated holds, in sample and held out."""
        return self.certificate.holds and (
            self.held_out is None or self.held_out.certificate.holds
        )

    @property
    def target_loss(self) -> float:
        """Loss of `h'''`, nats: held out where there is a hold-out."""
        return self._figures.target_loss

    @property
    def target_accuracy(self) -> float:
        """Accuracy of `h'''`: held out where there is a hold-out."""
        return self._figures.target_accuracy

    @property
    def score(self) -> float | None:
        """`1 - held-out target loss / H(p_T)`: 1 perfect, 0 guessing; None without a
        hold-out, NaN when `H(p_T) = 0`.
        """
        return None if self.held_out is None else score_of(self.held_out.bound)

    def predict_proba(self, features: Any) -> np.ndarray:
        """`h'''` on raw target features `(n, d)`: class probabilities `(n, K_T)` in the
        order of `target_classes`.

        Raises:
          ValueError: for another number of features, or NaN.
        """
        features = np.asarray(features)
        width, dtype = (
            np.shape(self.target_scaler.mean)[0],
            np.asarray(self.target_scaler.mean).dtype,
        )
        if features.ndim != 2 or features.shape[1] != width:
            raise ValueError(
                f"features: found shape {features.shape}, expected (n, {width})"
            )
        if features.dtype.kind not in "fiub" and features.dtype.name != "bfloat16":
            raise ValueError(
                f"features: found dtype {features.dtype}; give real numbers"
            )
        with np.errstate(over="ignore"):
            features = features.astype(dtype)
        if not np.isfinite(features).all():
            raise ValueError(
                f"features: NaN, infinite or beyond {dtype}; remove or repair such rows"
            )
        x = self.target_scaler(features)
        return np.exp(np.asarray(self.transforms.predict_log_proba(self.head, x)))

    def save(self, path: str | os.PathLike) -> None:
        """Write everything to one file, atomically; `Analysis.load` reads it back bit
        for bit.
        """
        archive.save(path, self)

    @staticmethod
    def load(path: str | os.PathLike) -> Analysis:
        """Read what `save` wrote. Raises ValueError for anything else."""
        result = archive.load(path)
        if not isinstance(result, Analysis):
            raise ValueError(
                f"path: {str(path)!r} holds {type(result).__name__}, not an Analysis"
            )
        return result

    def to_dict(self) -> dict[str, Any]:
        """Figures, priors and label mixing as plain Python values, for JSON."""
        return _plain_result(self)

    def summary(self) -> str:
        """A page of text that ends in a plain verdict."""
        from tta_jax.report.text import summary

        return summary(self)


def score_of(bound: Bound) -> float:
    """`1 - target loss / H(p_T)`; NaN when `H(p_T) = 0`."""
    return (
        1 - bound.target_loss / bound.prior_entropy
        if bound.prior_entropy > 0
        else float("nan")
    )


def analyze(
    source: Task,
    head: SoftmaxHead | None,
    target: Task,
    config: Config | None = None,
    key: Array | None = None,
    *,
    progress: Callable[[str, float], None] | None = None,
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] | None = None,
) -> Analysis:
    """Will the source classifier transfer to the target task, and why?

    Args:
      source: labelled features of the source task.
      head: the source classifier on raw source features; None fits one.
      target: features of the target task by the same encoder, with all, some or no
        labels.
      config: `Config()` by default.
      key: for splits, starts and batches; the same key gives the same bits. Default
        `jax.random.key(0)`.
      progress: called with a phase and the share done.
      parts: who learns and who is held out, as `evaluation_parts` gives it, in place of
        a split of its own.

    Raises:
      ValueError: the pair cannot be analysed; one line that names the argument, what
        was found and what to do.
    """
    config, seed = _check_call(config, key)
    source, target, head, warnings = _check_pair(source, head, target, config)
    given = len(source)
    if parts is None:
        source = _thinned(source, config.source_per_class, child(seed, 0))
        parts = evaluation_parts(source, target, config, seed)
    used = len(source)
    refit = config.folds >= 2
    clock = Clock(progress, max(1, len(parts)) + refit)
    rooms = _rooms(source, target, parts, config)
    evaluations: list[tuple[Evaluation, Probe, np.ndarray]] = []
    learned = None
    with in_background(*_compilations(source, target, parts, rooms, config)) as ready:
        for number, (learn_s, hold_s, learn_t, hold_t) in enumerate(parts):
            source_l, source_h = source.take(learn_s), source.take(hold_s)
            target_l, target_h = target.take(learn_t), target.take(hold_t)
            source_l, warning = _evaluable(source_l, source_h)
            learned = learn(
                source_l, head, target_l, config, child(seed, 1, number), clock
            )
            ready()
            clock.lap("certificate")
            evaluations.append(
                _evaluate(learned, source_h, target_h, config, clock, rooms[number])
            )
            warnings += [*warning, *learned.warnings]
            if not refit:
                source, target = source_l, target_l
        if refit or learned is None:
            learned = learn(
                source, head, target, config, child(seed, 1, len(parts)), clock
            )
            warnings += learned.warnings
        # In sample, unlabelled items count with the labels that the classifier gives
        # them.
        completed, covers = _with_pseudo_labels(learned, target)
        ready()
        clock.lap("certificate")
        inside, probe, _ = _evaluate(
            learned, source, completed, config, clock, rooms[-1], covers
        )
    held_out = (
        _held_out(evaluations, target, config, child(seed, 2)) if evaluations else None
    )
    clock.lap("intervals")
    return Analysis(
        bound=inside.bound,
        certificate=inside.certificate,
        held_out=held_out,
        transforms=learned.transforms,
        head=learned.head if head is None or config.refit_head else head,
        source_scaler=learned.source_scaler,
        target_scaler=learned.target_scaler,
        probe=probe,
        info=learned.info,
        stopped=learned.stopped,
        timings=clock.finish(),
        versions=versions(),
        config=config,
        source_name=source.name,
        target_name=target.name,
        source_classes=source.class_names,
        target_classes=target.class_names,
        sizes={
            "source_given": given,
            "source_used": used,
            "source": len(source),
            "target": len(target),
            "features": source.dim,
        },
        warnings=tuple(dict.fromkeys(warnings)),
        covers=covers,
    )


def _rooms(
    source: Task, target: Task, parts: list, config: Config
) -> list[Room | None]:
    """Sizes of every certificate of this analysis, the one in sample last; None where
    they cannot be foreseen.
    """

    def counts(task: Task, index: np.ndarray | slice) -> np.ndarray:
        labels = np.asarray(task.labels)[index][np.asarray(task.labelled)[index]]
        return np.bincount(labels, minlength=task.num_classes)

    everything = slice(None)
    pairs = [(hold_s, hold_t) for _, hold_s, _, hold_t in parts]
    pairs += (
        [(everything, everything)]
        if config.folds or not parts
        else [(parts[0][0], parts[0][2])]
    )
    if config.learn == "all" and config.objective != "score":
        return [None] * len(pairs)  # a target class may draw on several source classes
    return foreseen_rooms([(counts(source, s), counts(target, t)) for s, t in pairs])


def _compilations(
    source: Task, target: Task, parts: list, rooms: list[Room | None], config: Config
) -> Iterator[Callable[[], None]]:
    """What takes longest to compile and is needed late; whatever is not foreseen is
    compiled when it is used.
    """
    sizes = (source.dim, source.num_classes, target.num_classes)
    if config.family == "logit_affine":
        items, dtype = (
            len(parts[0][2]) if parts else len(target),
            np.asarray(target.features).dtype,
        )
        yield partial(
            compile_closed_form,
            *closed_form_sizes(items, source, target, config, dtype),
        )
    for room in dict.fromkeys(room for room in rooms if room is not None):
        yield partial(
            rehearse,
            room,
            *sizes,
            config.family,
            config.rungs,
            config.sinkhorn_iterations,
        )


# -- the door --------------------------------------------------------------------------


def _check_call(config: Any, key: Any) -> tuple[Config, Seed]:
    if config is not None and not isinstance(config, Config):
        raise ValueError(
            f"config: found {type(config).__name__}; give a Config or None"
        )
    try:
        seed = seed_of(jax.random.key(0) if key is None else key)
    except (TypeError, ValueError):
        raise ValueError(
            f"key: found {type(key).__name__}; give jax.random.key(0) or another key"
        ) from None
    return config or Config(), seed


def _check_pair(source: Task, head: Any, target: Task, config: Config):
    for name, task in (("source", source), ("target", target)):
        if not isinstance(task, Task):
            raise ValueError(
                f"{name}: found {type(task).__name__}; build a Task with "
                "Task.from_arrays"
            )
    if source.dim != target.dim:
        raise ValueError(
            f"target: {target.dim} features, but the source has {source.dim}; use "
            "the "
            "same encoder for both tasks"
        )
    if source.encoder and target.encoder and source.encoder != target.encoder:
        raise ValueError(
            f"target: its features are those of {target.encoder!r}, the source's of "
            f"{source.encoder!r}; "
            "use the same encoder for both tasks"
        )
    if not np.asarray(source.labelled).any():
        raise ValueError(
            f"source: task {source.name!r} has no labels; the analysis transforms "
            "labelled source classes"
        )
    if source.num_classes < 2:
        raise ValueError(
            f"source: task {source.name!r} has a single class; at least 2 are needed"
        )
    warnings = []
    if head is not None:
        if not (hasattr(head, "weight") and hasattr(head, "bias")):
            raise ValueError(
                f"head: found {type(head).__name__}; give a SoftmaxHead or None"
            )
        dtype = np.asarray(source.features[:1]).dtype
        head = SoftmaxHead.checked(
            head.weight, head.bias, source.num_classes, source.dim, dtype
        )
    known = int(np.asarray(target.labelled).sum())
    if known == 0:
        names = target.class_names or source.class_names
        if names != source.class_names:
            raise ValueError(
                "target: without any label its classes must be the source's (leave "
                "class_names out); "
                "label a few items to name other classes"
            )
        target = dataclasses.replace(target, class_names=names)
        warnings.append(
            "no target label is known: everything rests on pseudo-labels and says "
            "nothing certain about true labels"
        )
    elif source.num_classes < target.num_classes:
        warnings.append(
            f"the source's {source.num_classes} classes are fewer than the target's "
            f"{target.num_classes}, which must share them; "
            f"tta.subdivided(source, {(more := 2 * target.num_classes)}) or "
            f"--subdivide {more} divides source classes by features"
        )
    if 0 < known < len(target):
        warnings.append(
            f"{len(target) - known} of {len(target)} target items have no label: "
            "they "
            "learn with pseudo-labels"
        )
    if target.num_classes < 2:
        raise ValueError(
            f"target: task {target.name!r} has a single class "
            f"({target.class_names[0]!r}); nothing is left to classify"
        )
    single = (
        [str(target.class_names[k]) for k in np.flatnonzero(target.counts == 1)]
        if known
        else []
    )
    if single and (config.holdout > 0 or config.folds):
        warnings.append(
            f"target classes with one item are never evaluated: {', '.join(single[:5])}"
        )
    if config.confidence is not None and target.groups is not None:
        warnings.append("no population statement: items of a group are not independent")
    return source, target, head, warnings


def _thinned(source: Task, per_class: int, seed: Seed) -> Task:
    """At most so many items of every class: from 500 to all of them, figures move by a
    few per cent at most (README).
    """
    if not per_class or source.counts.max() <= per_class:
        return source
    return source.take(
        thinned(source, np.arange(len(source)), per_class, np.random.default_rng(seed))
    )


def evaluation_parts(source: Task, target: Task, config: Config, key: Array | Seed):
    """What is learned on and what is held out: index quadruples (source learn, source
    held, target learn, target held).

    `analyze` calls this with its own key (and a thinned source), so other methods can
    be judged on the same items.
    """
    seed_target, seed_source = (child(seed_of(key), 3, part) for part in range(2))
    if not np.asarray(target.labelled).any() or not (config.folds or config.holdout):
        return []
    if config.folds:
        pairs = zip(
            source.folds(config.folds, seed_source),
            target.folds(config.folds, seed_target),
            strict=True,
        )
        parts = [(*s, *t) for s, t in pairs]
    else:
        parts = [
            (
                *source.split(config.holdout, seed_source),
                *target.split(config.holdout, seed_target),
            )
        ]
    common = shared_rows(source, target)
    return (
        [_disjoint(source, target, common, *part) for part in parts]
        if len(common)
        else parts
    )


def _disjoint(
    source: Task, target: Task, common: np.ndarray, learn_s, hold_s, learn_t, hold_t
):
    """Keep what one task evaluates out of what the other learns from; `common` are the
    source's items that both have.
    """

    def without(mine: np.ndarray, other: np.ndarray) -> np.ndarray:
        candidates = np.intersect1d(mine, common)
        same = candidates[shared_rows(source.take(candidates), target.take(other))]
        return np.setdiff1d(mine, same)

    learn_s, hold_s = without(learn_s, hold_t), without(hold_s, learn_t)
    if not len(learn_s) or not len(hold_s):
        raise ValueError(
            "source: its items are the target's, so nothing is left to hold out; "
            "set "
            "holdout=0 and folds=0"
        )
    return learn_s, hold_s, learn_t, hold_t


def _evaluable(learning: Task, held: Task) -> tuple[Task, list[str]]:
    """The source's learning part without the classes that its evaluation part lacks: no
    mass could be moved to them there.
    """
    lost = (learning.counts > 0) & (held.counts == 0)
    if not lost.any():
        return learning, []
    labelled = np.asarray(learning.labelled) & ~lost[np.asarray(learning.labels)]
    if len(np.unique(np.asarray(learning.labels)[labelled])) < 2:
        raise ValueError(
            "source: fewer than 2 classes have items both to learn from and to "
            "hold "
            "out; give more items or set holdout=0"
        )
    names = ", ".join(str(learning.class_names[k]) for k in np.flatnonzero(lost)[:5])
    return dataclasses.replace(learning, labelled=labelled), [
        (
            "source classes that cannot be held out take no part (one item, one group "
            "or "
            f"copies): {names}"
        )
    ]


def _with_pseudo_labels(learned: Learned, target: Task) -> tuple[Task, str]:
    known = np.asarray(target.labelled)
    if known.all():
        return target, "the labels given"
    labels = np.where(
        known, np.asarray(target.labels), predict(learned, target).argmax(1)
    )
    share = 1 - known.mean()
    return relabelled(
        target, labels
    ), f"pseudo-labels ({share:.0%} of the items); no certificate for the true loss"


# -- evaluation ------------------------------------------------------------------------


def _evaluate(
    learned: Learned,
    source: Task,
    target: Task,
    config: Config,
    clock: Clock,
    room: Room | None,
    covers: str = "the labels given",
):
    def scaled(task, scaler):
        return Samples(scaler(np.asarray(task.features)), task.labels, task.labelled)

    source_part, target_part = (
        scaled(source, learned.source_scaler),
        scaled(target, learned.target_scaler),
    )

    def tell():
        return clock.tell("certificate", 0.25 / target.num_classes)

    result = certify(
        learned.transforms,
        source_part,
        learned.head,
        target_part,
        rungs=config.rungs,
        epsilon=config.epsilon,
        max_iterations=config.sinkhorn_iterations,
        covers=covers,
        on_class=tell,
        room=room,
    )
    known = np.asarray(target.labelled)
    z, labels = (
        np.asarray(target_part.features)[known],
        np.asarray(target.labels)[known],
    )
    probe = Probe(*loss_and_accuracy(learned.probe, z, labels))
    losses = np.concatenate([c[2] for c in result.classes])
    clock.lap("certificate")
    return result, probe, losses


def _held_out(evaluations, target: Task, config: Config, seed: Seed) -> HeldOut:
    sizes = np.array([len(losses) for _, _, losses in evaluations], float)
    share = sizes / sizes.sum()

    def mean(values):
        return float(np.dot(share, list(values)))

    bounds = [e.bound for e, _, _ in evaluations]
    bound = Bound(
        **{
            f.name: mean(getattr(b, f.name) for b in bounds)
            for f in dataclasses.fields(Bound)
        }
    )
    certificates = [e.certificate for e, _, _ in evaluations]
    first = certificates[0]

    def interval(name):
        return Interval(
            mean(getattr(c, name).lower for c in certificates),
            mean(getattr(c, name).upper for c in certificates),
        )

    certificate = dataclasses.replace(
        first,
        tight=interval("tight"),
        oscillation=interval("oscillation"),
        lipschitz=interval("lipschitz"),
        theorem=interval("theorem"),
        target_loss=bound.target_loss,
        holds=all(c.holds for c in certificates),
        reasons={k: v for c in certificates for k, v in c.reasons.items()},
        iterations=tuple(max(c.iterations[i] for c in certificates) for i in range(2)),
        marginal_error=max(c.marginal_error for c in certificates),
    )
    # Every fold has its own classifier: its classes enter the bootstrap with its share
    # of the items.
    classes = [
        (s, q * w, t, r * w)
        for (e, _, _), w in zip(evaluations, share, strict=True)
        for s, q, t, r in e.classes
    ]
    hits = [hit for e, _, _ in evaluations for hit in e.hits]
    spread: dict[str, tuple[float, float]] = {}
    if config.bootstrap:
        spread = intervals.bootstrap(
            classes,
            hits,
            bound.prior_entropy,
            np.random.default_rng(seed),
            config.bootstrap,
            config.interval,
        )
    population = None
    if (
        config.confidence is not None and target.groups is None
    ):  # items of a group are not independent
        clip = config.clip_loss or 2 * float(np.log(target.num_classes))
        # A union over the folds' classifiers keeps the level.
        level = 1 - (1 - config.confidence) / len(evaluations)
        upper = mean(
            intervals.population_bound(losses, clip, level)
            for _, _, losses in evaluations
        )
        population = {
            "confidence": config.confidence,
            "clip": clip,
            "expected_clipped_loss": upper,
        }
    probe = Probe(
        mean(p.loss for _, p, _ in evaluations),
        mean(p.accuracy for _, p, _ in evaluations),
    )
    return HeldOut(
        bound,
        certificate,
        spread,
        config.interval,
        probe,
        int(sizes.sum()),
        population,
        len(evaluations),
    )


def versions(*more: str) -> dict[str, str]:
    """Of Python, the device, the libraries that figures depend on, and more
    packages.
    """
    from importlib.metadata import version

    names = ("tta-jax", "jax", "jaxlib", "optax", "ott-jax", "flax", "numpy", *more)
    found = {
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
    }
    for name in names:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:
            found[name] = "not installed"
    return found


def _plain_result(result: Analysis) -> dict[str, Any]:
    def bounds(bound: Bound, certificate: Certificate) -> dict[str, Any]:
        figures = {f.name: getattr(bound, f.name) for f in dataclasses.fields(bound)}
        rungs = {
            n: [getattr(certificate, n).lower, getattr(certificate, n).upper]
            for n in RUNGS
        }
        return figures | {
            "informative": bool(bound.informative),
            "informative_rungs": list(bound.informative_rungs),
            "holds": certificate.holds,
            "wasserstein_terms": rungs,
            "not_certified": certificate.reasons,
        }

    held = result.held_out
    return archive.finite(
        {
            "source": result.source_name,
            "target": result.target_name,
            "source_classes": [str(c) for c in result.source_classes],
            "target_classes": [str(c) for c in result.target_classes],
            "sizes": result.sizes,
            "score": result.score,
            "target_loss": result.target_loss,
            "target_accuracy": result.target_accuracy,
            "covers": result.covers,
            "in_sample": bounds(result.bound, result.certificate)
            | {"probe": dataclasses.asdict(result.probe)},
            "held_out": None
            if held is None
            else bounds(held.bound, held.certificate)
            | {
                "intervals": {k: list(v) for k, v in held.intervals.items()},
                "level": held.level,
                "items": held.items,
                "probe": dataclasses.asdict(held.probe),
                "population": held.population,
                "folds": held.folds,
            },
            "prior": np.asarray(result.transforms.prior).tolist(),
            "label_mixing": np.asarray(result.transforms.label_mixing).tolist(),
            "stopped": result.stopped,
            "timings": result.timings,
            "versions": result.versions,
            "config": dataclasses.asdict(result.config),
            "warnings": list(result.warnings),
        }
    )
