"""Analyse one pair of tasks: split, fit, certify, summarise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from tta_jax._internal.typing import Array
from tta_jax.analysis.relatedness import (
    HeldStar,
    evaluate_star,
    held_star,
    pool,
    relate,
)
from tta_jax.analysis.result import Analysis, HeldOut, Probe, versions
from tta_jax.bounds import intervals
from tta_jax.bounds.certificate import (
    Evaluation,
    Interval,
    PaddedShape,
    certify,
    plan_padding,
)
from tta_jax.bounds.chain import RUNGS, Bound
from tta_jax.config import Config
from tta_jax.core.heads import SoftmaxHead
from tta_jax.fitting.learn import Clock, FitSeeds, Learned
from tta_jax.fitting.prepare import (
    ALL_LEARNED,
    TaskSplit,
    bootstrap_seed,
    divides_source,
    inner_seed,
    split_task,
)
from tta_jax.fitting.pseudo_labels import learn, predict, with_labels
from tta_jax.probes import loss_and_accuracy
from tta_jax.tasks.splits import (
    Seed,
    content_hash,
    fold_in_seed,
    seed_from_key,
    shared_rows,
    split_groups,
    subsample_per_class,
)
from tta_jax.tasks.standardizer import dominating_rows
from tta_jax.tasks.subdivision import with_enough_classes
from tta_jax.tasks.task import Samples, Task
from tta_jax.transport.sinkhorn import load_solver


def analyze(
    source: Task,
    head: SoftmaxHead | None,
    target: Task,
    config: Config | None = None,
    key: Array | Seed | None = None,
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
    given, contents = len(source), (content_hash(source), content_hash(target))
    if parts is None:
        parts = _choose_parts(source, target, config, seed, contents)
    splits = [_split_pair(source, target, part) for part in parts]
    whole = _whole(source, target, config, fold_in_seed(seed, 0))
    inside = whole if config.folds or not splits else splits[0]
    used = len(np.union1d(inside[0].source_learn, inside[0].source_held))
    refit = config.folds >= 2
    clock = Clock(progress, max(1, len(splits)) + refit)
    padded_shapes = _padded_shapes([*splits, inside], config)
    evaluations: list[tuple[Evaluation, Probe]] = []
    stars: list[HeldStar] = []
    largest_losses: list[float] = []
    learned = None

    def fit(split, number):
        seeds = FitSeeds(
            source=inner_seed(seed, contents[0], number),
            target=inner_seed(seed, contents[1], number),
            pair=fold_in_seed(seed, 1, number),
        )
        learning = target.take(split[1].learn)
        return learn(source, split[0], head, learning, config, seeds, clock)

    load_solver()
    for number, split in enumerate(splits):
        warnings += _lost_classes(source, split[0])
        learned = fit(split, number)
        held_s, held_t = source.take(split[0].source_held), target.take(split[1].held)
        groups = split_groups(held_s), split_groups(held_t)
        evaluations.append(
            _evaluate(
                learned, held_s, held_t, config, clock, padded_shapes[number], groups
            )
        )
        stars.append(held_star(learned, held_s, held_t, groups))
        largest_losses.append(_largest_loss(learned))
        warnings += learned.warnings
    if refit or learned is None:
        learned = fit(whole, len(splits))
        warnings += learned.warnings
    # In sample, unlabelled items count with the labels that the classifier gives them.
    source_l = source.take(inside[0].source_learn)
    for split, (found, _) in zip(splits, evaluations, strict=True):
        warnings += _costly_item(found, split[1].held)
    completed, covers = _with_pseudo_labels(learned, target.take(inside[1].learn))
    in_sample, probe = _evaluate(
        learned, source_l, completed, config, clock, padded_shapes[-1], covers=covers
    )
    held_out = related = None
    if evaluations:
        pooled, mine = pool(stars), bootstrap_seed(seed, *contents)
        clock.lap("relatedness")
        together = None
        if config.family == "star":
            assert pooled is not None
            together = evaluate_star(pooled, config.objective)
        held_out = _held_out(
            evaluations, together, largest_losses, target, config, mine
        )
        clock.lap("intervals")
        if pooled is not None:
            related = relate(pooled, learned.star, config, fold_in_seed(mine, 1))
        clock.lap("relatedness")
    return Analysis(
        bound=in_sample.bound,
        certificate=in_sample.certificate,
        held_out=held_out,
        relatedness=related,
        transforms=learned.transforms,
        head=learned.head if head is None or _replaces_head(config) else head,
        source_scaler=learned.source_encoder,
        target_scaler=learned.target_encoder,
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
            "source": len(source_l),
            "target": len(completed),
            "features": source.dim,
        },
        warnings=tuple(dict.fromkeys(warnings)),
        covers=covers,
    )


def _replaces_head(config: Config) -> bool:
    """Whether the result has another head than the user's."""
    return config.refit_head or config.family == "star"


def _largest_loss(learned: Learned) -> float:
    """What an item can cost at most, nats."""
    if learned.encoders is None:
        return learned.transforms.largest_loss
    log_prior = np.asarray(learned.log_prior, np.float64)
    return learned.info["scale"] - float(log_prior[np.isfinite(log_prior)].min())


def _padded_shapes(
    splits: list[tuple[TaskSplit, TaskSplit]], config: Config
) -> list[PaddedShape | None]:
    """Choose padded sizes of every certificate, the one in sample last; None where
    class problems have shapes of their own.
    """
    counts = [(s.source_counts, t.target_counts) for s, t in splits[:-1]]
    source, target = splits[-1]
    counts.append((source.source_learn_counts, target.learn_counts))
    if config.learn == "all" and config.objective != "score":
        # A target class may draw on all source classes.
        counts = [(np.array([mine.sum()]), theirs) for mine, theirs in counts]
    return plan_padding(counts)


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
    else:
        source, said = _with_enough_classes(source, head, target, config)
        warnings += said
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
    warnings += _large_bundle(target)
    for name, task in (("source", source), ("target", target)):
        warnings += _large_rows(name, task)
    if config.confidence is not None and target.groups is not None:
        warnings.append("no population statement: items of a group are not independent")
    return source, target, head, warnings


# A group of so many items, and of such a share of them, can decide a hold-out.
_LARGE, _LARGE_SHARE = 5, 0.1
# An item that costs so many nats, and such a share of H(p_T) in the mean loss.
_COSTLY, _COSTLY_SHARE = 8.0, 0.05


def _large_bundle(target: Task) -> list[str]:
    """Warn of a group, or copies of one item, that go to one side of a split whole."""
    sizes = np.bincount(split_groups(target))
    largest, share = int(sizes.max()), sizes.max() / len(target)
    if largest < _LARGE or share < _LARGE_SHARE:
        return []
    return [
        f"{largest} of {len(target)} target items ({share:.0%}) are one group or "
        f"copies of one item (row {int(sizes.argmax())}): all of them are held out or "
        "none, so figures depend on which; are they blank?"
    ]


def _large_rows(name: str, task: Task) -> list[str]:
    """Warn of rows that decide how features are scaled."""
    rows = dominating_rows(np.asarray(task.features))
    return [
        f"{name}: row {row} makes up more than a quarter of the variance of all "
        f"{len(task)} items; are its features saturated?"
        for row in rows
    ]


def _costly_item(found: Evaluation, held: np.ndarray) -> list[str]:
    """Warn of one held-out item that decides the loss."""
    entropy = found.bound.prior_entropy
    classes = [c for c in found.classes if len(c.target)]
    if not classes or not entropy > 0:
        return []
    c = max(classes, key=lambda c: float((c.target_mass * c.target).max()))
    shares = c.target_mass * c.target
    at = int(shares.argmax())
    share = float(shares[at])
    if not c.target[at] >= _COSTLY or share < _COSTLY_SHARE * entropy:
        return []
    return [
        f"one held-out target item (row {int(held[c.target_groups[at]])}) costs "
        f"{c.target[at]:.1f} nats, {share / entropy:.0%} of guessing's mean loss: look "
        "at its features"
    ]


def _with_enough_classes(
    source: Task, head: SoftmaxHead | None, target: Task, config: Config
) -> tuple[Task, list[str]]:
    """The source, divided where it has fewer classes than the target; and warnings."""
    given, wanted = source.num_classes, target.num_classes
    if given >= wanted:
        return source, []
    if divides_source(config, head, given, wanted):
        source = with_enough_classes(source, wanted)
    said = f"the source's {given} classes are fewer than the target's {wanted}"
    if source.num_classes >= wanted:
        return source, [
            f"{said}: they were divided into {source.num_classes} by their features"
        ]
    why = ", which must share them; how related the source is cannot be told"
    if source.num_classes > given:
        why = f", and its items are enough for {source.num_classes}{why}"
    return source, [said + why]


def evaluation_parts(
    source: Task, target: Task, config: Config, key: Array | Seed
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Choose what is learned on and what is held out.

    Scans split the same way. Held-out target items that the source learns from are left
    out, so nothing evaluated was seen while learning.

    Args:
      source, target: of the pair.
      config: `holdout`, `folds` and `source_per_class` count.
      key: of the analysis.

    Returns:
      Index quadruples (source learn, source held, target learn, target held), one for
      each fold; none without a hold-out or target labels.

    Raises:
      ValueError: nothing can be held out.
    """
    contents = (content_hash(source), content_hash(target))
    return _choose_parts(source, target, config, seed_from_key(key), contents)


def _choose_parts(
    source: Task, target: Task, config: Config, seed: Seed, contents: tuple[str, str]
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """`evaluation_parts`, given the `content_hash` of both tasks."""
    if not np.asarray(target.labelled).any() or not (config.folds or config.holdout):
        return []
    parts = []
    splits = (
        split_task(task, config, seed, content)
        for task, content in zip((source, target), contents, strict=True)
    )
    for mine, theirs in zip(*splits, strict=True):
        learns, held = source.take(mine.source_learn), target.take(theirs.held)
        held = np.delete(theirs.held, shared_rows(held, learns))
        if not len(held):
            raise ValueError(f"target: {ALL_LEARNED}; set holdout=0 and folds=0")
        parts.append((mine.source_learn, mine.source_held, theirs.learn, held))
    return parts


def _split_pair(source: Task, target: Task, part: tuple) -> tuple[TaskSplit, TaskSplit]:
    """The splits of both tasks, from index quadruples."""
    learn_s, held_s, learn_t, held_t = part
    return (
        TaskSplit.of_indices(source, learn_s, held_s, learn_s, held_s),
        TaskSplit.of_indices(target, learn_t, held_t, learn_t, held_t),
    )


def _whole(
    source: Task, target: Task, config: Config, seed: Seed
) -> tuple[TaskSplit, TaskSplit]:
    """Learn from all items, of the source some of each class at most."""
    most = config.source_per_class or len(source)
    rng = np.random.default_rng(seed)
    mine = subsample_per_class(source, np.arange(len(source)), most, rng)
    all_items = np.arange(len(target))
    return (
        TaskSplit.of_indices(source, mine, mine, mine, mine),
        TaskSplit.of_indices(target, all_items, all_items, all_items, all_items),
    )


def _lost_classes(source: Task, split: TaskSplit) -> list[str]:
    """Name the source classes that take no part.

    Raises:
      ValueError: fewer than two are left.
    """
    lost = (split.source_learn_counts > 0) & (split.source_counts == 0)
    if not lost.any():
        return []
    if ((split.source_learn_counts > 0) & ~lost).sum() < 2:
        raise ValueError(
            "source: fewer than 2 classes have items both to learn from and to hold "
            "out; give more items or set holdout=0"
        )
    names = ", ".join(str(source.class_names[k]) for k in np.flatnonzero(lost)[:5])
    return [
        "source classes that cannot be held out take no part (one item, one group or "
        f"copies): {names}"
    ]


def _with_pseudo_labels(learned: Learned, target: Task) -> tuple[Task, str]:
    known = np.asarray(target.labelled)
    if known.all():
        return target, "the labels given"
    labels = np.where(
        known, np.asarray(target.labels), predict(learned, target).argmax(1)
    )
    share = 1 - known.mean()
    return with_labels(
        target, labels
    ), f"pseudo-labels ({share:.0%} of the items); no certificate for the true loss"


def _evaluate(
    learned: Learned,
    source: Task,
    target: Task,
    config: Config,
    clock: Clock,
    padded: PaddedShape | None,
    groups: tuple[np.ndarray, np.ndarray] | None = None,
    covers: str = "the labels given",
) -> tuple[Evaluation, Probe]:
    """Certify what was learned on items of both tasks, beside the probe."""

    def scaled(task, scaler):
        return Samples(scaler(np.asarray(task.features)), task.labels, task.labelled)

    known = np.asarray(target.labelled)
    target_items = scaled(target, learned.target_scaler)
    if learned.encoders is not None:
        everyone = np.arange(len(source)), np.arange(len(target))
        placed = pool([held_star(learned, source, target, groups or everyone)])
        assert placed is not None
        result = evaluate_star(placed, config.objective, covers)
        clock.tell("certificate", 0.25)
    else:
        result = certify(
            learned.transforms,
            scaled(source, learned.source_scaler),
            learned.head,
            target_items,
            rungs=config.rungs,
            epsilon=config.epsilon,
            max_iterations=config.sinkhorn_iterations,
            covers=covers,
            on_class=partial(clock.tell, "certificate", 0.25 / target.num_classes),
            padded=padded,
            groups=groups,
        )
    z, labels = np.asarray(target_items.features)[known], target.labels[known]
    probe = Probe(*loss_and_accuracy(learned.probe, z, np.asarray(labels)))
    clock.lap("certificate")
    return result, probe


def _average(found: list[Evaluation], weights: np.ndarray) -> Evaluation:
    """Average the folds' figures.

    Args:
      found: of the folds.
      weights: `(folds,)`, of the folds.
    """
    stacked = jax.tree.map(lambda *v: np.array(v), *(e.bound for e in found))
    bound: Bound = jax.tree.map(float, intervals.mean_over_folds(stacked, weights))
    certificates = [e.certificate for e in found]

    def mean(values):
        return float(intervals.mean_over_folds(np.array(list(values)), weights))

    def interval(name):
        return Interval(
            mean(getattr(c, name).lower for c in certificates),
            mean(getattr(c, name).upper for c in certificates),
        )

    certificate = dataclasses.replace(
        certificates[0],
        **{name: interval(name) for name in RUNGS},
        target_loss=bound.target_loss,
        holds=all(c.holds for c in certificates),
        reasons={k: v for c in certificates for k, v in c.reasons.items()},
        iterations=tuple(max(c.iterations[i] for c in certificates) for i in range(3)),
        marginal_error=max(c.marginal_error for c in certificates),
    )
    classes = intervals.join_folds([e.classes for e in found], weights)
    return Evaluation(bound, certificate, classes)


def _held_out(
    evaluations: list[tuple[Evaluation, Probe]],
    together: Evaluation | None,
    largest_losses: list[float],
    target: Task,
    config: Config,
    seed: Seed,
) -> HeldOut:
    """Average the folds' figures, and say how sure they are.

    Args:
      evaluations: of the folds.
      together: of the items of all folds, in place of the average; or None.
      largest_losses: of each fold's classifier, nats.
      target: the task.
      config: of the analysis.
      seed: of the bootstrap.
    """
    found = [evaluation for evaluation, _ in evaluations]
    losses = [np.concatenate([c.target for c in e.classes]) for e in found]
    items = np.array([len(values) for values in losses])
    weights = intervals.fold_weights(items)

    def mean(values):
        return float(intervals.mean_over_folds(np.array(list(values)), weights))

    figures = together or _average(found, weights)
    found_intervals = intervals.Intervals({}, "")
    if config.bootstrap:
        found_intervals = intervals.bootstrap(
            figures.classes,
            figures.bound.prior_entropy,
            np.random.default_rng(seed),
            config.bootstrap,
            config.interval,
        )
    population = None
    # Items of a group are not independent.
    if config.confidence is not None and target.groups is None:
        # A union over the folds' classifiers keeps the level.
        level = 1 - (1 - config.confidence) / len(found)
        population = {"confidence": config.confidence}
        largest = max(largest_losses)
        # Without a clip the statement is about the loss itself.
        if config.clip_loss is None and np.isfinite(largest):
            names, clip = ("largest_loss", "expected_loss"), largest
        else:
            names = "clip", "expected_clipped_loss"
            clip = config.clip_loss or 2 * float(np.log(target.num_classes))
        expected = mean(
            intervals.population_bound(values, clip, level) for values in losses
        )
        population |= dict(zip(names, (clip, expected), strict=True))
    return HeldOut(
        bound=figures.bound,
        certificate=figures.certificate,
        intervals=found_intervals.limits,
        informative=found_intervals.informative,
        level=config.interval,
        probe=Probe(
            mean(probe.loss for _, probe in evaluations),
            mean(probe.accuracy for _, probe in evaluations),
        ),
        items=int(items.sum()),
        population=population,
        folds=len(found),
    )
