"""Analyse one pair of tasks: split, fit, certify, summarise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from tta_jax._internal.compilation import precompile_in_thread
from tta_jax._internal.typing import Array
from tta_jax.analysis.result import Analysis, HeldOut, Probe, versions
from tta_jax.bounds import intervals
from tta_jax.bounds.certificate import (
    Evaluation,
    Interval,
    PaddedShape,
    certify,
    plan_padding,
    precompile_certificate,
)
from tta_jax.bounds.chain import Bound
from tta_jax.config import Config
from tta_jax.core.heads import SoftmaxHead
from tta_jax.fitting.closed_form import compile_closed_form
from tta_jax.fitting.fit_pair import (
    Clock,
    Learned,
    closed_form_sizes,
    learn,
    predict,
    relabelled,
)
from tta_jax.probes import loss_and_accuracy
from tta_jax.tasks.splits import (
    Seed,
    fold_in_seed,
    seed_from_key,
    shared_rows,
    subsample_per_class,
)
from tta_jax.tasks.task import Samples, Task


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
        source = _thinned(source, config.source_per_class, fold_in_seed(seed, 0))
        parts = evaluation_parts(source, target, config, seed)
    used = len(source)
    refit = config.folds >= 2
    clock = Clock(progress, max(1, len(parts)) + refit)
    rooms = _rooms(source, target, parts, config)
    evaluations: list[tuple[Evaluation, Probe, np.ndarray]] = []
    learned = None
    with precompile_in_thread(
        *_compilations(source, target, parts, rooms, config)
    ) as ready:
        for number, (learn_s, hold_s, learn_t, hold_t) in enumerate(parts):
            source_l, source_h = source.take(learn_s), source.take(hold_s)
            target_l, target_h = target.take(learn_t), target.take(hold_t)
            source_l, warning = _evaluable(source_l, source_h)
            learned = learn(
                source_l, head, target_l, config, fold_in_seed(seed, 1, number), clock
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
                source, head, target, config, fold_in_seed(seed, 1, len(parts)), clock
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
        _held_out(evaluations, target, config, fold_in_seed(seed, 2))
        if evaluations
        else None
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
) -> list[PaddedShape | None]:
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
    return plan_padding([(counts(source, s), counts(target, t)) for s, t in pairs])


def _compilations(
    source: Task,
    target: Task,
    parts: list,
    rooms: list[PaddedShape | None],
    config: Config,
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
            precompile_certificate,
            room,
            *sizes,
            config.family,
            config.rungs,
            config.sinkhorn_iterations,
        )


def _check_call(config: Any, key: Any) -> tuple[Config, Seed]:
    if config is not None and not isinstance(config, Config):
        raise ValueError(
            f"config: found {type(config).__name__}; give a Config or None"
        )
    try:
        seed = seed_from_key(jax.random.key(0) if key is None else key)
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
            f"target: {target.dim} features, but the source has {source.dim}; use the "
            "same encoder for both tasks"
        )
    if source.encoder and target.encoder and source.encoder != target.encoder:
        raise ValueError(
            f"target: its features are those of {target.encoder!r}, the source's of "
            f"{source.encoder!r}; use the same encoder for both tasks"
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
                "class_names out); label a few items to name other classes"
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
            f"{len(target) - known} of {len(target)} target items have no label: they "
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
        subsample_per_class(
            source, np.arange(len(source)), per_class, np.random.default_rng(seed)
        )
    )


def evaluation_parts(source: Task, target: Task, config: Config, key: Array | Seed):
    """What is learned on and what is held out: index quadruples (source learn, source
    held, target learn, target held).

    `analyze` calls this with its own key (and a thinned source), so other methods can
    be judged on the same items.
    """
    seed_target, seed_source = (
        fold_in_seed(seed_from_key(key), 3, part) for part in range(2)
    )
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
            "source: its items are the target's, so nothing is left to hold out; set "
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
            "source: fewer than 2 classes have items both to learn from and to hold "
            "out; give more items or set holdout=0"
        )
    names = ", ".join(str(learning.class_names[k]) for k in np.flatnonzero(lost)[:5])
    return dataclasses.replace(learning, labelled=labelled), [
        (
            "source classes that cannot be held out take no part (one item, one group "
            f"or copies): {names}"
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


def _evaluate(
    learned: Learned,
    source: Task,
    target: Task,
    config: Config,
    clock: Clock,
    room: PaddedShape | None,
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
