"""Learn from targets whose labels are unknown, or some of them."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from tta_jax.config import Config
from tta_jax.core.heads import SoftmaxHead
from tta_jax.fitting.fit_pair import fit_source
from tta_jax.fitting.learn import Clock, FitSeeds, Learned, learn_labelled
from tta_jax.fitting.prepare import (
    TaskSplit,
    prepare_source,
    source_scaler,
    target_scaler,
)
from tta_jax.tasks.splits import fold_in_seed
from tta_jax.tasks.task import Task

_MAX_ROUNDS = 4


def learn(
    source: Task,
    split: TaskSplit,
    head: SoftmaxHead | None,
    target: Task,
    config: Config,
    seeds: FitSeeds,
    clock: Clock,
) -> Learned:
    """Learn from the learning parts alone.

    Args:
      source: the task; classes without labelled items take no part.
      split: which of its items learn.
      head: on raw source features, used as it is; None fits one.
      target: the learning part, with all, some or no labels.
      config: of the analysis.
      seeds: see `FitSeeds`.
      clock: told how long each phase takes.
    """
    if config.refit_head:
        head = None
    if np.asarray(target.labelled).all():
        return learn_labelled(source, split, head, target, config, seeds, clock)
    return _learn_pseudo(source, split, head, target, config, seeds, clock)


def _learn_pseudo(
    source: Task,
    split: TaskSplit,
    head: SoftmaxHead | None,
    target: Task,
    config: Config,
    seeds: FitSeeds,
    clock: Clock,
) -> Learned:
    """Alternate between labelling unlabelled items by `h'''` and learning from all."""
    known = np.asarray(target.labelled)
    if known.any():
        first = target.take(np.flatnonzero(known))
    else:
        labels = _source_labels(source, split, head, target, config, seeds)
        first = with_labels(target, labels)
    learned = learn_labelled(source, split, head, first, config, seeds, clock)
    labels, settled = None, f"pseudo-labels had not settled after {_MAX_ROUNDS} rounds"
    for number in range(_MAX_ROUNDS):
        predicted = predict(learned, target).argmax(1)
        new = np.where(known, np.asarray(target.labels), predicted)
        if labels is not None and (new == labels).mean() > 0.999:
            settled = f"pseudo-labels settled after {number} rounds"
            break
        labels = new
        learned = learn_labelled(
            source,
            split,
            head,
            with_labels(target, labels),
            config,
            seeds._replace(target=fold_in_seed(seeds.target, 2, number)),
            clock,
            known if known.any() else None,
        )
    return learned._replace(stopped=f"{learned.stopped}; {settled}")


def _source_labels(
    source: Task,
    split: TaskSplit,
    head: SoftmaxHead | None,
    target: Task,
    config: Config,
    seeds: FitSeeds,
) -> np.ndarray:
    """Name the classes by the source classifier, where no label is known, `(n_T,)`."""
    if head is None:
        scaler = source_scaler(source, split, config, None)
        arrays = prepare_source(source, split, scaler, config, None, seeds.source)
        fit = fit_source(arrays)
        head = SoftmaxHead(fit.weight, fit.bias)
        everything = np.arange(len(target))
        whole = TaskSplit(*[everything] * len(TaskSplit._fields))
        scaler = target_scaler(target, whole, config, None)
        rows = scaler(np.asarray(target.features))
    else:
        rows = np.asarray(target.features)
    return np.asarray(head.logits(rows)).argmax(1)


def with_labels(target: Task, labels: np.ndarray) -> Task:
    """The task with all labels known."""
    known = np.ones(len(target), bool)
    return dataclasses.replace(target, labels=labels.astype(np.int32), labelled=known)


def predict(learned: Learned, target: Task) -> np.ndarray:
    """`h'''` on the target's items, `(n, K_T)`."""
    x = learned.target_encoder(np.asarray(target.features))
    return np.exp(np.asarray(_log_proba(learned.transforms, learned.head, x)))


@jax.jit
def _log_proba(transforms, head, x):
    return transforms.predict_log_proba(head, x)
