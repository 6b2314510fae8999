"""`analyze`: a pair of tasks in, an `Analysis` out. Hold-out, cross-fitting, the order of the steps; no mathematics."""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tta_jax import archive, coupling, intervals, maps, optimise
from tta_jax.archive import storable
from tta_jax.bound import Bound, Transforms
from tta_jax.certificate import Certificate, Evaluation, Interval, bucket, certify, pad_rows
from tta_jax.head import SoftmaxHead, choose_l2, empty_head, minimise_cross_entropy
from tta_jax.task import Samples, Standardizer, Task, generator

Array = jax.Array

OBJECTIVES = ("score", "tight", "oscillation", "theorem", "published")
LEARN = ("all", "map", "none")
_INNER_FOLDS = 4
_HEAD_STEPS = 30
_PSEUDO_ROUNDS = 4

for _kind in (SoftmaxHead, Standardizer, *maps.FeatureMap.__subclasses__()):
    storable(_kind)


@storable
@dataclasses.dataclass(frozen=True)
class Config:
    """How a pair is analysed. Frozen and value-equal; changing a number that is not a shape compiles nothing.

    Attributes:
      objective: what is minimised: "score" (held-out target loss; the default), "tight", "oscillation", "theorem" (these rungs),
        or "published" (the paper's algorithm).
      learn: "all", "map" (labels stay assigned) or "none" (identity map); the paper's LearnedAll, LearnedA, FixedAll.
      feature_map: a family of `tta_jax.maps`; "auto" is "logit_affine" ("dense" for "theorem", "published_pair" for "published").
      holdout: share of both tasks that takes no part in learning; 0 for none.
      folds: 2 or more for cross-fitting in place of one hold-out.
      steps: optimiser steps; 0 keeps the closed-form start; None is 300, and 1,001 for "published".
      learning_rate: of Adam.
      batch_size: items per class and step.
      restarts: starts optimised side by side (the first is the closed form, the others are perturbed).
      epsilon: entropic regularisation, relative to the mean cost; decides the gap of certificates, not their validity.
      sinkhorn_iterations: most iterations per class and cost in a certificate.
      rungs: "all", or "tight" for no transport at all.
      standardize: standardise features (a source with a head of yours keeps its coordinates).
      clip: standardised target features are cut at this many deviations.
      l2: weight decay of a fitted head; None chooses by hold-out.
      lipschitz: bound on the certified constant of a fitted head, per standardised unit; None for none.
      refit_head: refit a head that was given.
      confidence: adds a statement about the population at this level, for example 0.95.
      clip_loss: the loss is clipped there (nats) in that statement; None takes `2 ln K_T`.
      bootstrap: replicates of the intervals.
      interval: level of the intervals.
    """

    objective: str = "score"
    learn: str = "all"
    feature_map: str = "auto"
    holdout: float = 0.25
    folds: int = 0
    steps: int | None = None
    learning_rate: float = 1e-2
    batch_size: int = 64
    restarts: int = 1
    epsilon: float = 0.02
    sinkhorn_iterations: int = 300
    rungs: str = "all"
    standardize: bool = True
    clip: float = 5.0
    l2: float | None = None
    lipschitz: float | None = None
    refit_head: bool = False
    confidence: float | None = None
    clip_loss: float | None = None
    bootstrap: int = 300
    interval: float = 0.95

    def __post_init__(self):
        _one_of("objective", self.objective, OBJECTIVES)
        _one_of("learn", self.learn, LEARN)
        _one_of("rungs", self.rungs, ("all", "tight"))
        _one_of("feature_map", self.feature_map, ("auto", "logit_affine", *maps.FAMILIES))
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout: found {self.holdout}; give a share of at least 0 and below 1")
        if self.folds < 0 or self.folds == 1:
            raise ValueError(f"folds: found {self.folds}; give 0 for one hold-out or at least 2")
        for name, low in (
            ("steps", 0),
            ("batch_size", 2),
            ("restarts", 1),
            ("bootstrap", 0),
            ("sinkhorn_iterations", 1),
        ):
            if getattr(self, name) is not None and getattr(self, name) < low:
                raise ValueError(f"{name}: found {getattr(self, name)}; give at least {low}")
        for name in ("learning_rate", "epsilon", "clip", "l2", "lipschitz", "clip_loss"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}: found {value}; give a positive number")
        for name in ("confidence", "interval"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ValueError(f"{name}: found {value}; give a level between 0 and 1, for example 0.95")

    @property
    def step_count(self) -> int:
        """`steps` with None resolved."""
        return {"published": 1001}.get(self.objective, 300) if self.steps is None else self.steps

    @property
    def family(self) -> str:
        """The feature map's family with "auto" resolved."""
        if self.feature_map != "auto":
            return self.feature_map
        return {"theorem": "dense", "published": "published_pair"}.get(self.objective, "logit_affine")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: found {value!r}; choose one of {', '.join(allowed)}")


@storable
@dataclasses.dataclass(frozen=True)
class Probe:
    """A ridge probe on the target alone (no source): what the same labels give without any transfer."""

    loss: float
    accuracy: float


@storable
@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Figures on samples of both tasks that took no part in learning; means over folds where there are folds.

    Attributes:
      bound, certificate: as in the analysis.
      intervals: `target_loss`, `target_accuracy`, `tight`, `score` -> (low, high), bootstrap.
      level: of the intervals.
      probe: the source-free ridge probe on the same samples.
      items: labelled target items evaluated.
      population: for `Config(confidence=...)`: level, clip (nats) and the upper bound of the expected clipped loss.
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
      held_out: the honest figures; None with `holdout=0` and no folds, or without target labels.
      transforms: class prior, label mixing, coupling, feature map; the map acts on `source_scaler(features)` and gives
        `target_scaler(features)`.
      head: the head that was used, on `source_scaler(features)`; your own one unchanged, whose `source_scaler` is the identity.
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
    def target_loss(self) -> float:
        """Loss of `h'''`, nats: held out where there is a hold-out."""
        return self._figures.target_loss

    @property
    def target_accuracy(self) -> float:
        """Accuracy of `h'''`: held out where there is a hold-out."""
        return self._figures.target_accuracy

    @property
    def score(self) -> float | None:
        """`1 - held-out target loss / H(p_T)`: 1 perfect, 0 guessing; None without a hold-out, NaN when `H(p_T) = 0`."""
        return None if self.held_out is None else score_of(self.held_out.bound)

    def predict_proba(self, features: Any) -> np.ndarray:
        """`h'''` on raw target features `(n, d)`: class probabilities `(n, K_T)` in the order of `target_classes`.

        Raises:
          ValueError: for another number of features, or NaN.
        """
        features = np.asarray(features)
        width = np.shape(self.target_scaler.mean)[0]
        if features.ndim != 2 or features.shape[1] != width:
            raise ValueError(f"features: found shape {features.shape}, expected (n, {width})")
        if not np.isfinite(features).all():
            raise ValueError("features: NaN or infinite values; remove or repair such rows")
        x = self.target_scaler(features.astype(np.asarray(self.target_scaler.mean).dtype))
        return np.exp(np.asarray(self.transforms.predict_log_proba(self.head, x)))

    def save(self, path: str | os.PathLike) -> None:
        """Write everything to one file, atomically; `Analysis.load` reads it back bit for bit."""
        archive.save(path, self)

    @staticmethod
    def load(path: str | os.PathLike) -> Analysis:
        """Read what `save` wrote. Raises ValueError for anything else."""
        result = archive.load(path)
        if not isinstance(result, Analysis):
            raise ValueError(f"path: {str(path)!r} holds {type(result).__name__}, not an Analysis")
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
    return 1 - bound.target_loss / bound.prior_entropy if bound.prior_entropy > 0 else float("nan")


class Learned(NamedTuple):
    """What one learning part gave."""

    transforms: Transforms
    head: SoftmaxHead
    source_scaler: Standardizer
    target_scaler: Standardizer
    probe: optimise.Fit
    info: dict[str, Any]
    stopped: str


class _Clock:
    """Seconds by phase, and the progress line."""

    def __init__(self, progress: Callable[[str, float], None] | None, parts: int):
        self.seconds: dict[str, float] = {}
        self._last = self._begin = time.perf_counter()
        self._progress, self._parts, self._done = progress, parts, 0.0

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    def tell(self, what: str, share: float) -> None:
        self._done += share
        if self._progress is not None:
            self._progress(what, min(self._done / self._parts, 1.0))

    def finish(self) -> dict[str, float]:
        return {**self.seconds, "total": time.perf_counter() - self._begin}


def analyze(
    source: Task,
    head: SoftmaxHead | None,
    target: Task,
    config: Config | None = None,
    key: Array | None = None,
    *,
    progress: Callable[[str, float], None] | None = None,
) -> Analysis:
    """Will the source classifier transfer to the target task, and why?

    Args:
      source: labelled features of the source task.
      head: the source classifier on raw source features; None fits one.
      target: features of the target task by the same encoder, with all, some or no labels.
      config: `Config()` by default.
      key: for splits, starts and batches; the same key gives the same bits. Default `jax.random.key(0)`.
      progress: called with a phase and the share done.

    Raises:
      ValueError: the pair cannot be analysed; one line that names the argument, what was found and what to do.
    """
    config = Config() if config is None else config
    key = jax.random.key(0) if key is None else key
    source, target, head, warnings = _check_pair(source, head, target, config)
    key_parts, key_learn, key_boot = jax.random.split(key, 3)
    parts = evaluation_parts(source, target, config, key_parts)
    refit = config.folds >= 2
    clock = _Clock(progress, max(1, len(parts)) + refit)
    evaluations: list[tuple[Evaluation, Probe, np.ndarray]] = []
    learned = None
    for number, (learn_s, hold_s, learn_t, hold_t) in enumerate(parts):
        source_l, target_l = source.take(learn_s), target.take(learn_t)
        learned = _learn(source_l, head, target_l, config, jax.random.fold_in(key_learn, number), clock)
        evaluations.append(_evaluate(learned, source.take(hold_s), target.take(hold_t), config, clock))
        if not refit:
            source, target = source_l, target_l
    if refit or learned is None:
        learned = _learn(source, head, target, config, jax.random.fold_in(key_learn, len(parts)), clock)
    # In sample, unlabelled items count with the labels that the classifier gives them.
    completed, covers = _with_pseudo_labels(learned, target)
    inside, probe, _ = _evaluate(learned, source, completed, config, clock, covers)
    held_out = _held_out(evaluations, config, key_boot) if evaluations else None
    clock.lap("intervals")
    return Analysis(
        bound=inside.bound, certificate=inside.certificate, held_out=held_out, transforms=learned.transforms,
        head=learned.head if head is None or config.refit_head else head,
        source_scaler=learned.source_scaler, target_scaler=learned.target_scaler, probe=probe, info=learned.info,
        stopped=learned.stopped, timings=clock.finish(), versions=_versions(), config=config,
        source_name=source.name, target_name=target.name, source_classes=source.class_names,
        target_classes=target.class_names,
        sizes={"source": len(source), "target": len(target), "features": source.dim}, warnings=tuple(warnings), covers=covers,
    )  # fmt: skip


# -- the door ----------------------------------------------------------------------------------------------------------


def _check_pair(source: Task, head: Any, target: Task, config: Config):
    for name, task in (("source", source), ("target", target)):
        if not isinstance(task, Task):
            raise ValueError(f"{name}: found {type(task).__name__}; build a Task with Task.from_arrays")
    if source.dim != target.dim:
        raise ValueError(
            f"target: {target.dim} features, but the source has {source.dim}; use the same encoder for both tasks"
        )
    if not np.asarray(source.labelled).any():
        raise ValueError(f"source: task {source.name!r} has no labels; the analysis transforms labelled source classes")
    if source.num_classes < 2:
        raise ValueError(f"source: task {source.name!r} has a single class; at least 2 are needed")
    warnings = []
    if head is not None:
        if not (hasattr(head, "weight") and hasattr(head, "bias")):
            raise ValueError(f"head: found {type(head).__name__}; give a SoftmaxHead or None")
        head = SoftmaxHead.checked(head.weight, head.bias, source.num_classes, source.dim)
    known = int(np.asarray(target.labelled).sum())
    if known == 0:
        names = target.class_names or source.class_names
        if names != source.class_names:
            raise ValueError(
                "target: without any label its classes must be the source's (leave class_names out); "
                "label a few items to name other classes"
            )
        target = dataclasses.replace(target, class_names=names)
        warnings.append(
            "no target label is known: everything rests on pseudo-labels and says nothing certain about true labels"
        )
    elif known < len(target):
        warnings.append(
            f"{len(target) - known} of {len(target)} target items have no label: they learn with pseudo-labels"
        )
    if target.num_classes < 2:
        raise ValueError(
            f"target: task {target.name!r} has a single class ({target.class_names[0]!r}); nothing is left to classify"
        )
    single = [str(target.class_names[k]) for k in np.flatnonzero(target.counts == 1)] if known else []
    if single and (config.holdout > 0 or config.folds):
        warnings.append(f"target classes with one item are never evaluated: {', '.join(single[:5])}")
    return source, target, head, warnings


def evaluation_parts(source: Task, target: Task, config: Config, key: Array):
    """What is learned on and what is held out: index quadruples (source learn, source held, target learn, target held).

    `analyze` calls this with `jax.random.split(key, 3)[0]`, so other methods can be judged on the same items.
    """
    key_target, key_source = jax.random.split(key)
    if not np.asarray(target.labelled).any():
        return []
    if config.folds >= 2:
        pairs = zip(source.folds(config.folds, key_source), target.folds(config.folds, key_target), strict=True)
        return [(*s, *t) for s, t in pairs]
    if config.holdout > 0:
        return [(*source.split(config.holdout, key_source), *target.split(config.holdout, key_target))]
    return []


# -- learning ----------------------------------------------------------------------------------------------------------


def _padded(task: Task, scaler: Standardizer) -> Samples:
    """Standardised samples on the device, padded to a bucket."""
    size = bucket(len(task))
    x = pad_rows(np.asarray(scaler(task.features)), size)
    return Samples(
        jnp.asarray(x),
        jnp.asarray(pad_rows(np.asarray(task.labels), size)),
        jnp.asarray(pad_rows(np.asarray(task.labelled), size)),
    )


def _scalers(source: Task, target: Task, head: SoftmaxHead | None, config: Config) -> tuple[Standardizer, Standardizer]:
    """A head of the user's fixes the source's coordinates; maps that compare features then need the target's raw, too."""
    dtype = np.asarray(source.features).dtype
    same = Standardizer.identity(source.dim, dtype)
    own = head is not None and not config.refit_head
    fit_source = config.standardize and not own
    fit_target = config.standardize and (not own or config.family == "logit_affine")
    return (
        Standardizer.fit(np.asarray(source.features)) if fit_source else same,
        Standardizer.fit(np.asarray(target.features), clip=config.clip) if fit_target else same,
    )


def _learn(source: Task, head: SoftmaxHead | None, target: Task, config: Config, key: Array, clock: _Clock) -> Learned:
    """Everything that is fitted, from the learning parts alone."""
    if np.asarray(target.labelled).all():
        return _learn_labelled(source, head, target, config, key, clock)
    return _learn_pseudo(source, head, target, config, key, clock)


def _learn_labelled(
    source: Task,
    head: SoftmaxHead | None,
    target: Task,
    config: Config,
    key: Array,
    clock: _Clock,
    judged: np.ndarray | None = None,
) -> Learned:
    """Learn from a labelled target; `judged (n_T,)` marks the items whose labels are true, where not all are."""  # fmt: skip
    source_scaler, target_scaler = _scalers(source, target, head, config)
    samples_s, samples_t = _padded(source, source_scaler), _padded(target, target_scaler)
    clock.lap("prepare")
    num_sources, num_targets = source.num_classes, target.num_classes
    rng = generator(key)
    present = jnp.asarray(source.counts > 0)

    own = head is not None and not config.refit_head
    l2 = config.l2
    if own:
        assert head is not None
        current = SoftmaxHead(jnp.asarray(head.weight), jnp.asarray(head.bias))
    else:
        if l2 is None:
            weights = np.asarray(samples_s.mask, np.float32)
            l2 = choose_l2(
                np.asarray(samples_s.features),
                np.asarray(samples_s.labels),
                weights,
                num_sources,
                int(rng.integers(2**31)),
            )
        current = _fit_source(samples_s, None, present, l2, config, empty_head(num_sources, source.dim), few=True)
    clock.lap("head")

    if config.objective == "published":
        from tta_jax.published import learn_published

        transforms, head_out, info, stopped = learn_published(
            samples_s, samples_t, current, source.prior, target.prior,
            refit=not own, steps=config.step_count, learn=config.learn, key=key,
        )  # fmt: skip
        clock.lap("optimise")
        fold = _inner_folds(target, samples_t.features.shape[0], rng)
        probe = _fit_probe(samples_t, samples_t.mask, fold, _log_prior(target), num_targets)
        clock.lap("map")
        return Learned(
            transforms, head_out, source_scaler, target_scaler, jax.tree.map(np.asarray, probe), info, stopped
        )

    # Labels: which classes, assigned how, with which prior.
    chosen = present
    if num_sources > num_targets:
        number = min(num_targets, int(present.sum()))
        chosen = optimise.separated_classes(*samples_s, num_classes=num_sources, number=number) & present
    source_of, cost = optimise.assignment(current, samples_t, chosen, num_targets=num_targets)
    log_prior = _log_prior(target)
    log_joint, prior, active = _assigned(source_of, log_prior, num_sources=num_sources)
    clock.lap("labels")
    if not own:
        # The head that minimises the source loss under the new prior.
        current = _fit_source(samples_s, prior, active, l2, config, current)
    clock.lap("head")
    clock.tell("source head", 0.25)

    fold = _inner_folds(target, samples_t.features.shape[0], rng)
    judges = samples_t.mask if judged is None else jnp.asarray(pad_rows(judged, samples_t.features.shape[0]))
    free = config.family == "logit_affine"
    words = optimise.class_mean_logits(current, samples_s, active, num_classes=num_sources)
    refine = config.objective in ("score", "tight") and config.step_count > 0
    fit = optimise.closed_form(
        samples_t, judges, fold, log_joint, source_of, words, inner_folds=_INNER_FOLDS, refine=refine
    )
    probe = _fit_probe(samples_t, judges, fold, log_prior, num_targets)
    clock.lap("map")
    info: dict[str, Any] = {
        "assignment": np.asarray(source_of), "start_loss": float(fit.start_loss), "inner_loss": float(fit.best_loss),
        "pulls": np.asarray(optimise.PULLS), "pull_losses": np.asarray(fit.path), "ridge": float(fit.ridge),
        "scale": float(fit.scale), "offset": float(fit.offset),
        "words": ("mean source logits", "equidistant")[int(fit.words)],
    }  # fmt: skip
    phi: maps.FeatureMap
    if config.learn == "none":
        phi = maps.Identity()
        stopped = "nothing was learned: identity map, assigned labels"
    elif free and config.objective == "score":
        phi = optimise.logit_affine_map(fit)
        kept = int(fit.pull) < 0
        stopped = (
            "kept the closed-form start: no refinement improved the inner folds by more than a standard error"
            if kept
            else f"refined the closed-form start: inner-fold loss {float(fit.start_loss):.3f} -> {float(fit.best_loss):.3f}"
        )
        if not refine:
            stopped = "closed-form start (steps=0)"
    else:
        start_map = optimise.logit_affine_map(fit) if free else maps.FAMILIES[config.family](source.dim, key)
        outcome = _descend(
            source, target, samples_s, samples_t, current, own, start_map, source_of, cost, log_prior, config, key, rng
        )  # fmt: skip
        params, stopped, recorded = outcome
        info.update(recorded)
        phi, current = params.feature_map, params.head
        log_joint = _log_joint64(np.asarray(params.theta), target)
    clock.lap("optimise")
    clock.tell("transformations", 0.25)
    if config.learn == "none" or (free and config.objective == "score"):
        hit = np.asarray(source_of)[:, None] == np.arange(num_sources)
        log_joint = _log_joint64(np.where(hit, 0.0, -np.inf), target)
    transforms = Transforms(np.asarray(log_joint), jax.tree.map(np.asarray, phi))
    head_out = jax.tree.map(np.asarray, current)
    transforms = _completed(transforms, head_out, samples_s, samples_t, config)
    clock.lap("completion")
    return Learned(transforms, head_out, source_scaler, target_scaler, jax.tree.map(np.asarray, probe), info, stopped)


@partial(jax.jit, static_argnames=("num_sources",))
def _assigned(source_of: Array, log_prior: Array, *, num_sources: int) -> tuple[Array, Array, Array]:
    """`log J` of an assignment, the class prior D and which source classes are used."""
    log_joint = coupling.log_coupling(coupling.assignment_logits(source_of, num_sources), log_prior)
    log_d = coupling.log_source_prior(log_joint)
    return log_joint, jnp.exp(log_d), log_d > -jnp.inf


def _log_prior(target: Task) -> Array:
    """`log p_T (K_T,)` on the device; -inf for classes without items."""
    with np.errstate(divide="ignore"):
        return jnp.asarray(np.log(target.prior), jnp.asarray(target.features[:1]).dtype)


def _log_joint64(theta: np.ndarray, target: Task) -> np.ndarray:
    """`log J` in float64, so that its row sums are the sample's class shares to the last bit that matters."""
    with jax.enable_x64(True), np.errstate(divide="ignore"):
        return np.asarray(_log_coupling(np.asarray(theta, np.float64), np.log(target.prior)))


_log_coupling = jax.jit(coupling.log_coupling)


def _completed(
    transforms: Transforms, head: SoftmaxHead, source: Samples, target: Samples, config: Config
) -> Transforms:
    """Give a logit-affine map its affine `(A, b)` where one exists and the upper rungs are wanted."""
    phi = transforms.feature_map
    if not isinstance(phi, maps.LogitAffine) or config.rungs != "all":
        return transforms
    active = np.any(np.asarray(transforms.log_joint) > -np.inf, axis=0)
    completed = phi.complete(head, active, _moments(source), _moments(target))
    return dataclasses.replace(transforms, feature_map=completed)


def _moments(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    return jax.device_get(_mean_and_covariance(samples.features, samples.mask))


@jax.jit
def _mean_and_covariance(features: Array, mask: Array) -> tuple[Array, Array]:
    weights = mask / jnp.sum(mask)
    mean = weights @ features
    centred = (features - mean) * jnp.sqrt(weights)[:, None]
    return mean, centred.T @ centred


def _fit_source(
    samples: Samples, prior: Array | None, active: Array, l2: Any, config: Config, start: SoftmaxHead, few: bool = False
) -> SoftmaxHead:
    """Fit the head on the active classes, items weighted so that the class shares are `prior`."""
    num = active.shape[0]
    features, labels, mask = samples
    if few and features.shape[0] > 4096:
        features, labels, mask = features[:4096], labels[:4096], mask[:4096]
    weights = _item_weights(labels, mask, active, jnp.full(num, -1.0) if prior is None else prior)
    return minimise_cross_entropy(
        start, features, labels, weights, active, jnp.asarray(l2, features.dtype),
        jnp.asarray(np.inf if config.lipschitz is None else config.lipschitz, features.dtype),
        constrained=config.lipschitz is not None, steps=_HEAD_STEPS,
    )  # fmt: skip


@jax.jit
def _item_weights(labels: Array, mask: Array, active: Array, prior: Array) -> Array:
    """Weights that give every class its share of `prior`; a negative prior weights all items alike."""
    num = prior.shape[0]
    counts = jax.ops.segment_sum(mask.astype(prior.dtype), labels, num)
    per_item = jnp.where(prior < 0, 1.0, prior / jnp.maximum(counts, 1))
    return jnp.where(mask & active[labels], per_item[labels], 0.0)


def _inner_folds(target: Task, size: int, rng: np.random.Generator) -> Array:
    """Stratified inner folds `(size,)`; groups stay together where the task has any."""
    fold = np.zeros(size, np.int32)
    labels = np.asarray(target.labels)
    if target.groups is not None:
        groups = np.unique(np.asarray(target.groups), return_inverse=True)[1]
        fold[: len(target)] = rng.permutation(groups.max() + 1)[groups] % _INNER_FOLDS
        return jnp.asarray(fold)
    for k in range(target.num_classes):
        mine = np.flatnonzero(labels == k)
        fold[rng.permutation(mine)] = (np.arange(len(mine)) + rng.integers(_INNER_FOLDS)) % _INNER_FOLDS
    return jnp.asarray(fold)


def _fit_probe(target: Samples, judged: Array, fold: Array, log_prior: Array, num_targets: int) -> optimise.Fit:
    """The closed form with code words that come from no source: a ridge probe on the target."""
    eye = 20.0 * (jnp.eye(num_targets, dtype=target.features.dtype) - 1.0 / num_targets)
    log_joint, _, _ = _assigned(jnp.arange(num_targets), log_prior, num_sources=num_targets)
    return optimise.closed_form(
        target, judged, fold, log_joint, jnp.arange(num_targets), eye, inner_folds=_INNER_FOLDS, refine=False
    )


def _descend(source, target, samples_s, samples_t, head, own, start_map, source_of, cost, log_prior, config, key, rng):
    """Adam from the closed-form start, restarts side by side, the best on an inner validation part."""
    num_sources = source.num_classes
    learn_all = config.learn == "all" and config.objective != "score"
    number = min(num_sources, 4) if learn_all else 1
    # The assigned class first, then the cheapest others.
    ranked = jnp.argsort(jnp.where(source_of[:, None] == jnp.arange(num_sources), -jnp.inf, cost), axis=1)[:, :number]
    theta = coupling.assignment_logits(source_of, num_sources, sharpness=8.0 if learn_all else None)
    if learn_all:
        allowed = jnp.zeros_like(theta, bool).at[jnp.arange(theta.shape[0])[:, None], ranked].set(True)
        theta = jnp.where(allowed, theta, -jnp.inf)
    start = optimise.Params(theta, jax.tree.map(jnp.asarray, start_map), head)
    starts = _perturbed(start, config.restarts, key)
    keys = jax.random.split(jax.random.fold_in(key, 1), config.restarts)
    inner = _inner_folds(target, samples_t.features.shape[0], rng) == 0
    inner_s = jnp.asarray(rng.random(samples_s.features.shape[0]) < 0.2)
    # With too few items per class a validation part would miss classes: then the learning part serves as one.
    enough = int(target.counts[target.counts > 0].min()) >= _INNER_FOLDS
    split = lambda s, out: (s._replace(mask=s.mask & ~out), s._replace(mask=s.mask & out)) if enough else (s, s)
    (train_s, val_s), (train_t, val_t) = split(samples_s, inner_s), split(samples_t, inner)
    run = lambda start, key: optimise.minimise(
        start, train_s, train_t, (val_s, val_t), ranked, log_prior, jnp.asarray(max(config.epsilon, 0.05), jnp.float32),
        jnp.asarray(config.learning_rate, jnp.float32), key, objective=config.objective, learn=config.learn,
        learn_head=not own and config.objective != "score", batch_size=config.batch_size,
        checks=max(1, -(-config.step_count // 10)),
    )  # fmt: skip
    if config.step_count == 0:
        return start, "closed-form start (steps=0)", {}
    params, values, steps, info = jax.vmap(run)(starts, keys)
    best = int(jnp.nanargmin(values))
    step, value = int(steps[best]), float(values[best])
    recorded = {f"info_{name}": np.asarray(v) for name, v in info._asdict().items()}
    recorded |= {"validation": np.asarray(values), "best_steps": np.asarray(steps)}
    stopped = (
        f"kept the start: no step lowered the validation {config.objective}"
        if step == 0
        else f"best validation {config.objective} {value:.3f} nats at step {step} of {config.step_count}"
    )
    if config.restarts > 1:
        stopped += f" (start {best + 1} of {config.restarts})"
    return jax.tree.map(lambda v: v[best], params), stopped, recorded


def _perturbed(start, restarts: int, key: Array):
    """The start, stacked with perturbed copies of its label logits and map."""

    def stack(leaf, index):
        noise = jax.random.normal(jax.random.fold_in(key, index), (restarts, *leaf.shape), leaf.dtype)
        scale = 0.1 * (jnp.std(leaf) + 1e-2) if leaf.ndim else 0.0
        finite = jnp.isfinite(leaf)
        scale = 0.1 * jnp.std(jnp.where(finite, leaf, 0.0)) + 1e-3 if leaf.ndim else scale
        noise = noise.at[0].set(0.0)
        return jnp.where(finite, leaf + scale * noise, leaf)

    def each(tree):
        leaves, structure = jax.tree.flatten(tree)
        return jax.tree.unflatten(structure, [stack(leaf, i) for i, leaf in enumerate(leaves)])

    same = jax.tree.map(lambda v: jnp.broadcast_to(v, (restarts, *v.shape)), start.head)
    return dataclasses.replace(each(start), head=same)


# -- targets without labels --------------------------------------------------------------------------------------------


def _learn_pseudo(source, head, target, config, key, clock) -> Learned:
    """Alternate between labelling the unlabelled items by `h'''` and learning from all of them."""
    known = np.asarray(target.labelled)
    if known.any():
        learned = _learn_labelled(source, head, target.take(np.flatnonzero(known)), config, key, clock)
    else:
        # No label at all: the source classifier itself names the classes to start with.
        scaler_s, scaler_t = _scalers(source, target, head, config)
        start = head
        if start is None or config.refit_head:
            samples = _padded(source, scaler_s)
            l2 = config.l2 or 1e-3
            start = _fit_source(
                samples, None, jnp.asarray(source.counts > 0), l2, config, empty_head(source.num_classes, source.dim)
            )
        labels = np.asarray(jnp.argmax(start.logits(scaler_t(target.features)), axis=1))
        learned = _learn_labelled(source, head, _relabelled(target, labels), config, key, clock)
    labels, round_ = None, 0
    for round_ in range(_PSEUDO_ROUNDS):
        probabilities = _predict(learned, target)
        new = np.where(known, np.asarray(target.labels), probabilities.argmax(1))
        if labels is not None and (new == labels).mean() > 0.999:
            break
        labels = new
        judged = known if known.any() else None
        learned = _learn_labelled(
            source, head, _relabelled(target, labels), config, jax.random.fold_in(key, round_), clock, judged
        )
    return learned._replace(stopped=learned.stopped + f"; pseudo-labels settled after {round_ + 1} rounds")


def _relabelled(target: Task, labels: np.ndarray) -> Task:
    return dataclasses.replace(target, labels=labels.astype(np.int32), labelled=np.ones(len(target), bool))


def _predict(learned: Learned, target: Task) -> np.ndarray:
    x = learned.target_scaler(np.asarray(target.features))
    return np.exp(np.asarray(learned.transforms.predict_log_proba(learned.head, x)))


def _with_pseudo_labels(learned: Learned, target: Task) -> tuple[Task, str]:
    known = np.asarray(target.labelled)
    if known.all():
        return target, "the labels given"
    labels = np.where(known, np.asarray(target.labels), _predict(learned, target).argmax(1))
    share = 1 - known.mean()
    return _relabelled(target, labels), f"pseudo-labels ({share:.0%} of the items); no certificate for the true loss"


# -- evaluation --------------------------------------------------------------------------------------------------------


def _evaluate(
    learned: Learned, source: Task, target: Task, config: Config, clock: _Clock, covers: str = "the labels given"
):
    clock.lap("prepare")
    scaled = lambda task, scaler: Samples(scaler(np.asarray(task.features)), task.labels, task.labelled)
    source_part, target_part = scaled(source, learned.source_scaler), scaled(target, learned.target_scaler)
    tell = lambda: clock.tell("certificate", 0.25 / target.num_classes)
    result = certify(
        learned.transforms, source_part, learned.head, target_part, rungs=config.rungs, epsilon=config.epsilon,
        max_iterations=config.sinkhorn_iterations, covers=covers, on_class=tell,
    )  # fmt: skip
    known = np.asarray(target.labelled)
    logits = (
        np.asarray(target_part.features, np.float64)[known] @ np.asarray(learned.probe.weight, np.float64).T
        + learned.probe.bias
    )
    labels = np.asarray(target.labels)[known]
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    probe = Probe(float(-log_p[np.arange(len(labels)), labels].mean()), float((logits.argmax(1) == labels).mean()))
    losses = np.concatenate([c[2] for c in result.classes])
    clock.lap("certificate")
    return result, probe, losses


def _held_out(evaluations, config: Config, key: Array) -> HeldOut:
    sizes = np.array([len(losses) for _, _, losses in evaluations], float)
    share = sizes / sizes.sum()
    mean = lambda values: float(np.dot(share, list(values)))
    bounds = [e.bound for e, _, _ in evaluations]
    bound = Bound(**{f.name: mean(getattr(b, f.name) for b in bounds) for f in dataclasses.fields(Bound)})
    certificates = [e.certificate for e, _, _ in evaluations]
    first = certificates[0]
    interval = lambda name: Interval(
        mean(getattr(c, name).lower for c in certificates), mean(getattr(c, name).upper for c in certificates)
    )
    certificate = dataclasses.replace(
        first, tight=interval("tight"), oscillation=interval("oscillation"), lipschitz=interval("lipschitz"),
        theorem=interval("theorem"), target_loss=bound.target_loss, holds=all(c.holds for c in certificates),
        reasons={k: v for c in certificates for k, v in c.reasons.items()},
        iterations=tuple(max(c.iterations[i] for c in certificates) for i in range(2)),
        marginal_error=max(c.marginal_error for c in certificates),
    )  # fmt: skip
    # Every fold has its own classifier: its classes enter the bootstrap with its share of the items.
    classes = [
        (s, q * w, t, r * w) for (e, _, _), w in zip(evaluations, share, strict=True) for s, q, t, r in e.classes
    ]
    hits = [hit for e, _, _ in evaluations for hit in e.hits]
    spread: dict[str, tuple[float, float]] = {}
    if config.bootstrap:
        spread = intervals.bootstrap(
            classes, hits, bound.prior_entropy, generator(key), config.bootstrap, config.interval
        )
    population = None
    if config.confidence is not None:
        clip = config.clip_loss or 2 * float(np.log(max(len(evaluations[0][0].classes), 2)))
        # A union over the folds' classifiers keeps the level.
        level = 1 - (1 - config.confidence) / len(evaluations)
        upper = mean(intervals.population_bound(losses, clip, level) for _, _, losses in evaluations)
        population = {"confidence": config.confidence, "clip": clip, "expected_clipped_loss": upper}
    probe = Probe(mean(p.loss for _, p, _ in evaluations), mean(p.accuracy for _, p, _ in evaluations))
    return HeldOut(bound, certificate, spread, config.interval, probe, int(sizes.sum()), population, len(evaluations))


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("tta-jax", "jax", "jaxlib", "optax", "ott-jax", "flax", "numpy")
    found = {"python": platform.python_version(), "device": jax.devices()[0].device_kind}
    for name in names:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:
            found[name] = "not installed"
    return found


def _plain_result(result: Analysis) -> dict[str, Any]:
    def number(value: Any) -> Any:
        if isinstance(value, float) and not np.isfinite(value):
            return None
        return value

    def bounds(bound: Bound, certificate: Certificate) -> dict[str, Any]:
        figures = {f.name: number(getattr(bound, f.name)) for f in dataclasses.fields(bound)}
        rungs = {
            n: [number(getattr(certificate, n).lower), number(getattr(certificate, n).upper)]
            for n in ("tight", "oscillation", "lipschitz", "theorem")
        }
        return figures | {
            "informative": bool(bound.informative), "informative_rungs": list(bound.informative_rungs),
            "holds": certificate.holds, "wasserstein_terms": rungs, "not_certified": certificate.reasons,
        }  # fmt: skip

    held = result.held_out
    return {
        "source": result.source_name, "target": result.target_name,
        "source_classes": [str(c) for c in result.source_classes], "target_classes": [str(c) for c in result.target_classes],
        "sizes": result.sizes, "score": None if result.score is None else number(result.score),
        "target_loss": result.target_loss, "target_accuracy": result.target_accuracy, "covers": result.covers,
        "in_sample": bounds(result.bound, result.certificate) | {"probe": dataclasses.asdict(result.probe)},
        "held_out": None if held is None else bounds(held.bound, held.certificate) | {
            "intervals": {k: list(v) for k, v in held.intervals.items()}, "level": held.level, "items": held.items,
            "probe": dataclasses.asdict(held.probe), "population": held.population, "folds": held.folds,
        },
        "prior": np.asarray(result.transforms.prior).tolist(),
        "label_mixing": np.asarray(result.transforms.label_mixing).tolist(),
        "stopped": result.stopped, "timings": result.timings, "versions": result.versions,
        "config": dataclasses.asdict(result.config), "warnings": list(result.warnings),
    }  # fmt: skip
