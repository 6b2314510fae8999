"""More source classes from few: a source that has fewer classes than the target can
tell no more of the target's apart.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from tta_jax._internal.numbers import whole_number
from tta_jax.tasks.standardizer import Standardizer
from tta_jax.tasks.task import Task

LEAST = 8  # items of a sub-class: fewer can hardly be learned from and held out
_AXES = 30
_ROWS = 8192  # looked at for the axes


def subdivided(task: Task, num_classes: int) -> Task:
    """The task with its classes divided into sub-classes, `num_classes` in all, by the
    features alone.

    `h''' = B h(phi^-1(x))` mixes `K_S` outputs, so with `K_S < K_T` target classes
    share source classes, and the label mismatch that this costs is no matter of
    relatedness. Finer labels `(y, c(z, y))` make a source task like any other: every
    bound holds for it, and its head has to learn the finer labels. Give about twice
    `K_T`, so that the analysis can choose those that are told apart best.

    The largest class or sub-class is halved at the median of its first principal axis
    (of the standardised features) until there are enough; deterministic. None gets
    fewer than 8 items, so a small task, or one of many equal rows, ends with fewer
    classes than asked for. A task with `num_classes` or more is returned as it is.
    Groups are not looked at: sub-classes that are a group each cannot be held out.

    Args:
      task: labelled items; those without a label stay without one.
      num_classes: how many classes it shall have.

    Returns:
      The task; sub-classes of "cat" are named "cat/1", "cat/2", ...

    Raises:
      ValueError: no task, no labels, `num_classes` is not a whole number of at least 2,
        or a class has the name of a sub-class.
    """
    if not isinstance(task, Task):
        raise ValueError(
            f"task: found {type(task).__name__}; build a Task with Task.from_arrays"
        )
    number = whole_number(num_classes)
    if number is None or number < 2:
        raise ValueError(
            f"num_classes: found {num_classes!r}; give a whole number of at least 2"
        )
    known = np.asarray(task.labelled)
    if not known.any():
        raise ValueError(
            f"task: {task.name!r} has no labels, so there are no classes to divide"
        )
    if task.num_classes >= number:
        return task
    place, classes = (
        _principal(np.asarray(task.features)[known]),
        np.asarray(task.labels)[known],
    )
    leaf, parent = classes.astype(np.int64), list(range(task.num_classes))
    closed: set[int] = set()  # no halves of enough items, for equal rows
    while len(parent) < number:
        sizes = np.bincount(leaf, minlength=len(parent))
        sizes[list(closed)] = 0
        largest = int(sizes.argmax())
        if sizes[largest] < 2 * LEAST:
            break
        mine = np.flatnonzero(leaf == largest)
        upper = _upper_half(place[mine])
        if min(upper.sum(), (~upper).sum()) < LEAST:
            closed.add(largest)
            continue
        leaf[mine[upper]] = len(parent)
        parent.append(parent[largest])
    return _renamed(task, known, leaf, np.array(parent))


def with_enough_classes(task: Task, num_classes: int) -> Task:
    """The task, or divided into twice as many classes as are wanted if it has fewer.

    It keeps its classes where names of sub-classes would be taken.

    Args:
      task: with labels.
      num_classes: how many classes are wanted; a small task may end with fewer.
    """
    if task.num_classes >= num_classes:
        return task
    try:
        return subdivided(task, 2 * num_classes)
    except ValueError:
        return task


def _principal(features: np.ndarray) -> np.ndarray:
    """`(n, 30)` at most: standardised features in their first principal axes."""
    x = np.asarray(Standardizer.fit(features)(features), np.float64)
    some = (
        x
        if len(x) <= _ROWS
        else x[np.random.default_rng(0).permutation(len(x))[:_ROWS]]
    )
    some = some - some.mean(axis=0)
    return x @ np.linalg.eigh(some.T @ some)[1][:, ::-1][:, :_AXES]


def _upper_half(x: np.ndarray) -> np.ndarray:
    """`(n,)` bool: above (or at) the median of the first principal axis, which points
    where its largest component is positive.
    """
    centred = x - x.mean(axis=0)
    axis = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    along = centred @ (axis * np.sign(axis[np.abs(axis).argmax()]))
    middle = np.median(along)
    cuts = along > middle, along >= middle  # differ where many items are equal
    return min(cuts, key=lambda cut: abs(2 * int(cut.sum()) - len(cut)))


def _renamed(
    task: Task, known: np.ndarray, leaf: np.ndarray, parent: np.ndarray
) -> Task:
    """Sub-classes in the order of their classes, named after them."""
    order = np.argsort(parent, kind="stable")
    names = []
    for k, parts in enumerate(np.bincount(parent)):
        name = task.class_names[k]
        names += (
            [name]
            if parts == 1
            else [f"{name}/{number + 1}" for number in range(parts)]
        )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(
            f"task: {task.name!r} has a class named {twice!r}, as a sub-class would "
            "be; rename it"
        )
    labels = np.zeros(len(task), np.int32)
    labels[known] = np.argsort(order)[leaf]
    return dataclasses.replace(task, labels=labels, class_names=tuple(names))
