"""Prepare the parts of a task for fitting, on the host: split, standardise, pad.

Splits follow from the key and from what a task holds, not from its name, its role or
the other tasks of a scan. So figures of a pair do not depend on what else is scanned,
and the items held out of a task as a target are held out of it as a source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from tta_jax._internal.padding import geometric_bucket, pad_length, pad_rows
from tta_jax._internal.typing import ArrayLike
from tta_jax.config import Config
from tta_jax.core.heads import SoftmaxHead, empty_head
from tta_jax.fitting.logistic_regression import L2_GRID
from tta_jax.tasks.splits import (
    Seed,
    fold_in_seed,
    split_groups,
    subsample_per_class,
)
from tta_jax.tasks.standardizer import Standardizer
from tta_jax.tasks.task import Task

INNER_FOLDS = 4
# Held-out source items of a class that are used at most: bounds hold for any sample of
# the source.
HELD_PER_CLASS = 256
ALL_LEARNED = "the source has learned from every held-out item of the target"


class TaskSplit(NamedTuple):
    """Items of a task that learn and that are held out, in its two roles.

    Attributes:
      learn, held: indices of the items as a target.
      source_learn, source_held: as a source, some of each class at most.
      source_learn_counts, source_counts: `(K,)` labelled items of each class that a
        source learns from and holds out.
      target_counts, learn_counts: `(K,)`, that a target holds out and learns from.
    """

    learn: np.ndarray
    held: np.ndarray
    source_learn: np.ndarray
    source_held: np.ndarray
    source_learn_counts: np.ndarray
    source_counts: np.ndarray
    target_counts: np.ndarray
    learn_counts: np.ndarray

    @classmethod
    def of_indices(
        cls,
        task: Task,
        learn: np.ndarray,
        held: np.ndarray,
        source_learn: np.ndarray,
        source_held: np.ndarray,
    ) -> TaskSplit:
        """Count the labelled items of each class in given parts."""
        labels, known = np.asarray(task.labels), np.asarray(task.labelled)

        def counts(index):
            return np.bincount(labels[index[known[index]]], minlength=task.num_classes)

        return cls(
            learn=learn,
            held=held,
            source_learn=source_learn,
            source_held=source_held,
            source_learn_counts=counts(source_learn),
            source_counts=counts(source_held),
            target_counts=counts(held),
            learn_counts=counts(learn),
        )


def divides_source(
    config: Config, head: SoftmaxHead | None, source: int, target: int
) -> bool:
    """Whether the classes of a source are divided for a target.

    Args:
      config: `divide_source`, `objective` and `refit_head` count.
      head: of the user, whose classes are fixed; or None.
      source, target: their numbers of classes.
    """
    ours = head is None or config.refit_head
    wanted = config.divide_source and config.objective != "published"
    return wanted and ours and source < target


def inner_seed(seed: Seed, content: str, number: int) -> Seed:
    """Derive the seed of choices inside a task's learning part, of one split."""
    return fold_in_seed(seed, 7, int(content[:8], 16), number)


def bootstrap_seed(seed: Seed, source: str, target: str) -> Seed:
    """Derive the seed of a pair's intervals from the `content_hash` of both tasks."""
    return fold_in_seed(seed, 8, int(source[:8], 16), int(target[:8], 16))


def task_seed(seed: Seed, content: str) -> Seed:
    """Derive the seed of a task from what it holds."""
    return fold_in_seed(seed, *(int(content[i : i + 8], 16) for i in range(0, 32, 8)))


def split_task(task: Task, config: Config, seed: Seed, content: str) -> list[TaskSplit]:
    """Split a task: the hold-out, or every fold of the cross-fitting.

    Args:
      task: labelled items, or some.
      config: `holdout`, `folds` and `source_per_class` count.
      seed: of the analysis or scan.
      content: the task's `content_hash`.

    Raises:
      ValueError: if nothing can be held out.
    """
    mine = task_seed(seed, content)
    deal = fold_in_seed(mine, 0)
    pairs = (
        list(task.folds(config.folds, deal))
        if config.folds
        else [task.split(config.holdout, deal)]
    )
    rng = np.random.default_rng(fold_in_seed(mine, 1))
    found = []
    for learn, held in pairs:
        source_learn = subsample_per_class(
            task, learn, config.source_per_class or len(task), rng
        )
        source_held = subsample_per_class(task, held, HELD_PER_CLASS, rng)
        found.append(TaskSplit.of_indices(task, learn, held, source_learn, source_held))
    return found


def inner_folds(target: Task, seed: Seed) -> tuple[np.ndarray, tuple[str, ...]]:
    """Deal the learning part into folds, `(n_T,)` int32, for choices inside it.

    They are as strict as those outside it where the groups allow; otherwise a warning
    comes with them.
    """
    fold = np.full(len(target), -1, np.int32)
    for number in range(INNER_FOLDS, 1, -1):
        try:
            for k, (_, held) in enumerate(target.folds(number, seed)):
                fold[held] = k
        except ValueError:  # too few groups, or a class that sits in one of them
            continue
        return fold, ()
    rng = np.random.default_rng(seed)
    labels = np.asarray(target.labels)
    for k in range(target.num_classes):
        mine = rng.permutation(np.flatnonzero(labels == k))
        fold[mine] = (np.arange(len(mine)) + rng.integers(INNER_FOLDS)) % INNER_FOLDS
    return fold, (
        "too few groups or items: ridge, scale and refinement were chosen on items "
        "that are not independent",
    )


# -- arrays ----------------------------------------------------------------------------


class TaskShape(NamedTuple):
    """Padded sizes of a prepared task.

    Attributes:
      classes, dim: K and d.
      items: of the learning part.
      held: held-out items; of a source those of one class.
    """

    classes: int
    dim: int
    items: int
    held: int


def source_shape(
    classes: int, dim: int, splits: Sequence[TaskSplit], steps: int
) -> TaskShape:
    """Padded sizes of a source; `steps` of the ladder of sizes an octave."""
    items = max(len(s.source_learn) for s in splits)
    held = max(int(s.source_counts.max()) for s in splits)
    return TaskShape(*(geometric_bucket(n, steps) for n in (classes, dim, items, held)))


def target_shape(
    classes: int, dim: int, splits: Sequence[TaskSplit], steps: int
) -> TaskShape:
    """Padded sizes of a target; `steps` of the ladder of sizes an octave."""
    items, held = (max(len(getattr(s, n)) for s in splits) for n in ("learn", "held"))
    return TaskShape(*(geometric_bucket(n, steps) for n in (classes, dim, items, held)))


class SourceArrays(NamedTuple):
    """One split of a source as `fit_source` takes it.

    Attributes:
      features: `(n, d)`, standardised unless the head is the user's.
      labels, mask: `(n,)`.
      fold: `(n,)` int32, inner folds by which choices are made; -1 for items that
        always learn.
      usable: `(K,)` bool, classes that the evaluation has items of, too: no mass could
        be moved to the others there.
      decays: the weight decays to choose from, in units of the features' variance.
      l2: scalar, the decay wanted; NaN to choose it.
      head: of the user on these coordinates, or zeros.
      given: scalar bool, whether the head is the user's.
    """

    features: ArrayLike
    labels: ArrayLike
    mask: ArrayLike
    fold: ArrayLike
    usable: ArrayLike
    decays: ArrayLike
    l2: ArrayLike
    head: SoftmaxHead
    given: ArrayLike


class TargetArrays(NamedTuple):
    """One split of a target as `fit_pairs` takes it.

    Attributes:
      features: `(n, d)`, standardised.
      labels, mask: `(n,)`.
      fold: `(n,)` int32, inner folds; -1 for items that always learn.
      judged: `(n,)` bool, the items by whose inner-fold losses choices are made.
      log_prior: `(K,)`, `log p_T`; -inf for a class without items.
      dim: scalar, how many features are not padding.
      floor: scalar, the floor wanted; NaN to choose it.
    """

    features: ArrayLike
    labels: ArrayLike
    mask: ArrayLike
    fold: ArrayLike
    judged: ArrayLike
    log_prior: ArrayLike
    dim: ArrayLike
    floor: ArrayLike


def source_scaler(
    task: Task, split: TaskSplit, config: Config, head: SoftmaxHead | None
) -> Standardizer:
    """Standardise by the learning part; a head of the user's fixes the coordinates."""
    features = np.asarray(task.features)
    if head is not None or not config.standardize:
        return Standardizer.identity(task.dim, features.dtype)
    return Standardizer.fit(features[split.source_learn])


def target_scaler(
    task: Task, split: TaskSplit, config: Config, head: SoftmaxHead | None
) -> Standardizer:
    """Standardise by the learning part.

    Maps that compare features need the target's raw ones where a head of the user's
    fixes those of the source.
    """
    features = np.asarray(task.features)
    if config.standardize and (
        head is None or config.family in ("logit_affine", "star")
    ):
        return Standardizer.fit(features[split.learn], clip=config.clip)
    return Standardizer.identity(task.dim, features.dtype)


def prepare_source(
    task: Task,
    split: TaskSplit,
    scaler: Standardizer,
    config: Config,
    head: SoftmaxHead | None,
    seed: Seed,
    shape: TaskShape | None = None,
) -> SourceArrays:
    """Standardise and pad one split of a source.

    Args:
      task: with labels.
      split: of `split_task`.
      scaler: of `source_scaler`.
      config: `l2` counts.
      head: of the user on raw features, or None.
      seed: decides the inner folds.
      shape: padded sizes; None for those of this task alone.
    """
    features, labels = np.asarray(task.features), np.asarray(task.labels)
    learn = split.source_learn
    shape = shape or TaskShape(task.num_classes, task.dim, pad_length(len(learn)), 0)
    rows = scaler(features[learn])
    fold, _ = inner_folds(task.take(learn), seed)
    # Features that are far too large fail on the device, in their own pairs.
    with np.errstate(over="ignore"):
        variance = max(float(rows.var(axis=0, dtype=np.float64).mean()), 1e-30)
        decays = (np.asarray(L2_GRID) * variance).astype(features.dtype)
    if head is None:
        mine = empty_head(shape.classes, shape.dim, features.dtype)
    else:
        weight, bias = (np.asarray(v, features.dtype) for v in (head.weight, head.bias))
        mine = SoftmaxHead(
            _pad(weight, (shape.classes, shape.dim)), _pad(bias, (shape.classes,))
        )
    return SourceArrays(
        features=_pad(rows, (shape.items, shape.dim)),
        labels=pad_rows(labels[learn], shape.items),
        mask=pad_rows(np.asarray(task.labelled)[learn], shape.items),
        fold=_pad_folds(fold, shape.items),
        usable=_pad(split.source_counts > 0, (shape.classes,)),
        decays=decays,
        l2=np.asarray(np.nan if config.l2 is None else config.l2, features.dtype),
        head=mine,
        given=np.asarray(head is not None),
    )


def prepare_target(
    task: Task,
    split: TaskSplit,
    scaler: Standardizer,
    config: Config,
    seed: Seed,
    shape: TaskShape | None = None,
    judged: np.ndarray | None = None,
) -> tuple[TargetArrays, tuple[str, ...]]:
    """Standardise and pad one split of a target, and deal its inner folds.

    Args:
      task: with labels, or some.
      split: of `split_task`.
      scaler: of `target_scaler`.
      config: `floor` counts.
      seed: decides the inner folds.
      shape: padded sizes; None for those of this task alone.
      judged: `(len(split.learn),)` bool, the items whose labels are true; None for all.

    Returns:
      The arrays, and warnings.
    """
    learning = task.take(split.learn)
    features, count = np.asarray(learning.features), len(split.learn)
    dtype = features.dtype
    shape = shape or TaskShape(task.num_classes, task.dim, pad_length(count), 0)
    fold, warnings = inner_folds(learning, seed)
    known = np.asarray(learning.labelled)
    trusted = known & (fold >= 0) & (True if judged is None else judged)
    prior = np.pad(learning.prior, (0, shape.classes - task.num_classes))
    with np.errstate(divide="ignore"):
        log_prior = np.log(prior).astype(dtype)
    arrays = TargetArrays(
        features=_pad(scaler(features), (shape.items, shape.dim)),
        labels=pad_rows(np.where(known, learning.labels, 0), shape.items),
        mask=pad_rows(known, shape.items),
        fold=_pad_folds(fold, shape.items),
        judged=pad_rows(trusted, shape.items),
        log_prior=log_prior,
        dim=np.asarray(task.dim, np.int32),
        floor=np.asarray(np.nan if config.floor is None else config.floor, dtype),
    )
    return arrays, warnings


def moments(arrays: SourceArrays | TargetArrays) -> tuple[np.ndarray, float]:
    """Mean `(d,)` of the features and the sum of their variances, float64."""
    rows = np.asarray(arrays.features)[np.asarray(arrays.mask)]
    variance = rows.var(axis=0, dtype=np.float64).sum()
    return rows.mean(axis=0, dtype=np.float64), float(variance)


def source_struct(shape: TaskShape, dtype: np.dtype) -> SourceArrays:
    """Shapes and types of a prepared source, for compiling."""
    k, d, n = shape.classes, shape.dim, shape.items
    of = jax.ShapeDtypeStruct
    return SourceArrays(
        features=of((n, d), dtype),
        labels=of((n,), np.int32),
        mask=of((n,), np.bool_),
        fold=of((n,), np.int32),
        usable=of((k,), np.bool_),
        decays=of((len(L2_GRID),), dtype),
        l2=of((), dtype),
        head=SoftmaxHead(of((k, d), dtype), of((k,), dtype)),
        given=of((), np.bool_),
    )


def target_struct(shape: TaskShape, dtype: np.dtype) -> TargetArrays:
    """Shapes and types of a prepared target, for compiling."""
    k, d, n = shape.classes, shape.dim, shape.items
    of = jax.ShapeDtypeStruct
    return TargetArrays(
        features=of((n, d), dtype),
        labels=of((n,), np.int32),
        mask=of((n,), np.bool_),
        fold=of((n,), np.int32),
        judged=of((n,), np.bool_),
        log_prior=of((k,), dtype),
        dim=of((), np.int32),
        floor=of((), dtype),
    )


class HeldSource(NamedTuple):
    """Held-out items of a source by class.

    Attributes:
      features: `(K, c, d)`.
      counts: `(K,)` int32, how many there are.
      groups: `(K, c)` int32, equal for items that are drawn together.
    """

    features: ArrayLike
    counts: ArrayLike
    groups: ArrayLike


class HeldTarget(NamedTuple):
    """Held-out items of a target.

    Attributes:
      features: `(m, d)`.
      labels, mask: `(m,)`.
      groups: `(m,)` int32, equal for items that are drawn together.
    """

    features: ArrayLike
    labels: ArrayLike
    mask: ArrayLike
    groups: ArrayLike


def prepare_held_source(
    task: Task, split: TaskSplit, scaler: Standardizer, shape: TaskShape
) -> HeldSource:
    """Standardise, group by class and pad the held-out items of a source."""
    features, labels = np.asarray(task.features), np.asarray(task.labels)
    held = split.source_held
    counts = np.bincount(labels[held], minlength=shape.classes).astype(np.int32)
    by_class = np.zeros((shape.classes, shape.held, shape.dim), features.dtype)
    together = split_groups(task.take(held))
    groups = np.zeros((shape.classes, shape.held), np.int32)
    for k in np.flatnonzero(counts):
        mine = labels[held] == k
        by_class[k, : counts[k], : task.dim] = scaler(features[held[mine]])
        groups[k, : counts[k]] = together[mine]
    return HeldSource(by_class, counts, groups)


def prepare_held_target(
    task: Task, split: TaskSplit, scaler: Standardizer, shape: TaskShape
) -> HeldTarget:
    """Standardise and pad the held-out items of a target."""
    rows = scaler(np.asarray(task.features)[split.held])
    return HeldTarget(
        _pad(rows, (shape.held, shape.dim)),
        pad_rows(np.asarray(task.labels)[split.held], shape.held),
        pad_rows(np.ones(len(rows), bool), shape.held),
        pad_rows(split_groups(task.take(split.held)).astype(np.int32), shape.held),
    )


def _pad(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    sizes = zip(values.shape, shape, strict=True)
    return np.pad(values, [(0, wanted - size) for size, wanted in sizes])


def _pad_folds(fold: np.ndarray, size: int) -> np.ndarray:
    return np.pad(fold, (0, size - len(fold)), constant_values=-1)
