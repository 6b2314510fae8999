"""Split tasks into learning and evaluation parts; find duplicate rows; derive seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from typing import Any, Protocol

import jax
import numpy as np

from tta_jax._internal.typing import ArrayLike

_ROWS_IN_CACHE = 1024  # rows hashed or compared together


Seed = np.random.SeedSequence


class TaskLike(Protocol):
    """What splits read of a task; `Task` has it, and imports this module."""

    @property
    def features(self) -> ArrayLike: ...

    @property
    def labels(self) -> ArrayLike: ...

    @property
    def labelled(self) -> ArrayLike: ...

    @property
    def class_names(self) -> tuple[Hashable, ...]: ...

    @property
    def name(self) -> str: ...

    @property
    def groups(self) -> ArrayLike | None: ...

    @property
    def dim(self) -> int: ...

    @property
    def num_classes(self) -> int: ...

    def __len__(self) -> int: ...


def seed_from_key(key: jax.Array | Seed) -> Seed:
    """The seed of host-side choices that a JAX key determines; seeds stay as they
    are.
    """
    if isinstance(key, Seed):
        return key
    try:
        data = np.asarray(jax.random.key_data(key))  # new-style and raw keys alike
    except (TypeError, ValueError):
        raise ValueError(
            f"key: found {type(key).__name__}; give jax.random.key(0), for example"
        ) from None
    if data.ndim != 1:
        raise ValueError(f"key: found keys of shape {data.shape[:-1]}; give one key")
    return Seed(data.astype(np.uint32).tolist())


def fold_in_seed(seed: Seed, *path: int) -> Seed:
    """An independent seed for each path; unlike `spawn`, the same at every call."""
    return Seed(seed.entropy, spawn_key=(*seed.spawn_key, *path))


def device_key(seed: Seed) -> jax.Array:
    """A JAX key for choices on the device."""
    return jax.random.key(int(seed.generate_state(1)[0]))


def row_hashes(rows: np.ndarray) -> np.ndarray:
    """A 64-bit hash of each row, `(n,)`; equal rows have equal ones.

    Multilinear in the 32-bit words of a row: whatever two rows are, their upper halves
    coincide with probability 2^-32.
    """
    words = rows.shape[1] * rows.dtype.itemsize // 4
    factors = np.random.default_rng(0).integers(0, 2**64, words, dtype=np.uint64)
    hashes = np.empty(len(rows), np.uint64)
    for start in range(0, len(rows), _ROWS_IN_CACHE):
        # Adding zero turns -0.0 into 0.0, which compare equal.
        part = rows[start : start + _ROWS_IN_CACHE] + rows.dtype.type(0)
        hashes[start : start + _ROWS_IN_CACHE] = (
            part.view(np.uint32).astype(np.uint64) @ factors
        )
    return hashes


def first_duplicate_index(features: ArrayLike) -> np.ndarray:
    """For each row of `(n, d)` float32 or float64 the index of the first row that
    equals it exactly, `(n,)`.
    """
    rows = np.ascontiguousarray(features)
    hashes = row_hashes(rows)
    first = np.arange(len(rows))
    pending = first
    while pending.size:
        # The first row of each hash leads; rows that differ from their leader, a
        # collision, go round again.
        _, leaders, inverse = np.unique(
            hashes[pending], return_index=True, return_inverse=True
        )
        leader = pending[leaders][inverse]
        followers = leader != pending
        pending, leader = pending[followers], leader[followers]
        same = np.zeros(len(pending), bool)
        for start in range(0, len(pending), _ROWS_IN_CACHE):
            part = slice(start, start + _ROWS_IN_CACHE)
            same[part] = (rows[pending[part]] == rows[leader[part]]).all(axis=1)
        first[pending[same]] = leader[same]
        pending = pending[~same]
    return first


def shared_rows(first: TaskLike, second: TaskLike) -> np.ndarray:
    """Indices of the items of `first` whose feature vector is exactly that of an item
    of `second`.

    Raises:
      ValueError: if the tasks have different numbers of features.
    """
    if first.dim != second.dim:
        raise ValueError(
            f"second: task {second.name!r} has {second.dim} features, {first.name!r} "
            f"has {first.dim}"
        )
    rows = np.concatenate([np.asarray(second.features), np.asarray(first.features)])
    return np.flatnonzero(first_duplicate_index(rows)[len(second) :] < len(second))


def subsample_per_class(
    task: TaskLike, index: np.ndarray, most: int, rng: np.random.Generator
) -> np.ndarray:
    """Of the items of `index` the labelled ones, at most so many of each class, drawn
    at random; sorted.
    """
    labels, known = np.asarray(task.labels)[index], np.asarray(task.labelled)[index]
    mine = [index[known & (labels == k)] for k in range(task.num_classes)]
    chosen = [
        rows if len(rows) <= most else rng.choice(rows, most, replace=False)
        for rows in mine
    ]
    return np.sort(np.concatenate(chosen))


def split_groups(task: TaskLike) -> np.ndarray:
    """`(n,)` indices below n: equal for items that must stay together (same group, or
    the same feature vector).
    """
    copies = first_duplicate_index(task.features)
    return copies if task.groups is None else joined_groups(task.groups, copies)


def joined_groups(groups: ArrayLike, copies: np.ndarray) -> np.ndarray:
    """Connected components of "same group" and "copy of".

    Args:
      groups: `(n,)` group of each item.
      copies: `(n,)` indices of items: the one that each is a copy of, or itself.

    Returns:
      `(n,)` indices below n: the first item of each component.
    """
    # Union-find with path halving.
    n = len(copies)
    parent = np.arange(n)

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    leader: dict[int, int] = {}
    for i, g in enumerate(np.asarray(groups).tolist()):
        for j in (leader.setdefault(g, i), int(copies[i])):
            a, b = root(i), root(j)
            parent[max(a, b)] = min(a, b)
    return np.array([root(i) for i in range(n)])


def assign_folds(
    task: TaskLike, shares: np.ndarray, key: jax.Array | Seed, *, holdout: bool
) -> np.ndarray:
    """Fold of each item, `(n,)`; -1 for items that always learn. Class shares follow
    `shares` as closely as bundles allow.

    Unlabelled items get the fold of their bundle: while it is evaluated they must not
    be learned from.
    """
    rng = np.random.default_rng(seed_from_key(key))
    labels, known = np.asarray(task.labels), np.asarray(task.labelled)
    fold = np.full(len(task), -1)
    together = split_groups(task)
    members = np.flatnonzero(known)
    ids, inverse = np.unique(together[members], return_inverse=True)
    if len(ids) == len(members):
        for k in range(task.num_classes):
            mine = rng.permutation(members[labels[members] == k])
            fold[mine] = _assign_class_folds(len(mine), shares, rng, holdout)
    else:
        table = np.zeros((len(ids), task.num_classes))
        np.add.at(table, (inverse, labels[members]), 1)
        wanted = shares[:, None] * table.sum(0)
        filled = np.zeros_like(wanted)
        order = rng.permutation(len(ids))
        order = order[np.argsort(-table[order].sum(1), kind="stable")]
        place = np.zeros(len(ids), int)
        # A bundle that holds a whole class always learns: no fold could evaluate that
        # class after seeing it.
        whole = ((table > 0) & (table == table.sum(0))).any(axis=1)
        for b in order:
            if whole[b]:
                place[b] = 0 if holdout else -1
                continue
            # Put the bundle where it fills the most of what is still missing.
            short = (wanted - filled) / np.maximum(wanted, 1e-9)
            place[b] = int(
                np.argmax((short * table[b]).sum(1) + 1e-9 * rng.random(len(shares)))
            )
            filled[place[b]] += table[b]
        fold[members] = place[inverse]
    _check_folds(task, fold, len(shares), holdout)
    fold_of = np.full(len(task), -1)
    fold_of[together[members]] = fold[members]
    return fold_of[together]


def _assign_class_folds(
    n: int, shares: np.ndarray, rng: np.random.Generator, holdout: bool
) -> np.ndarray:
    """Folds for n shuffled items of one class; a single item always learns."""
    if n < 2:
        return np.full(n, -1)
    if holdout:
        held = min(max(round(shares[1] * n), 1), n - 1)
        return np.r_[np.zeros(n - held, int), np.ones(held, int)]
    return (np.arange(n) + rng.integers(len(shares))) % len(shares)


def _check_folds(task: TaskLike, fold: np.ndarray, number: int, holdout: bool) -> None:
    labels, known = np.asarray(task.labels), np.asarray(task.labelled)
    for k in [1] if holdout else range(number):
        inside = known & (fold == k)
        if not inside.any():
            raise ValueError(
                f"holdout: task {task.name!r} leaves no item to evaluate on (groups or "
                "exact copies hold the items "
                "together, or every class has one item); give more items or set "
                "holdout=0"
            )
        unseen = np.setdiff1d(labels[inside], labels[known & (fold != k)])
        if unseen.size:
            raise ValueError(
                f"labels: all items of class {task.class_names[unseen[0]]!r} of task "
                f"{task.name!r} fall into one part "
                "of the split (one group or exact copies); a class must be seen in "
                "learning to be evaluated"
            )


def content_hash(task: TaskLike) -> str:
    """Hash what a task holds: features, labels, class names, groups."""
    groups = [] if task.groups is None else [task.groups]
    return array_hash(
        task.features, task.labels, task.labelled, *groups, more=repr(task.class_names)
    )


def array_hash(*arrays: Any, more: str = "") -> str:
    """Hash arrays and a text."""
    made = hashlib.blake2b(digest_size=16)
    for array in map(np.asarray, arrays):
        made.update(f"{array.dtype} {array.shape}".encode())
        made.update(np.ascontiguousarray(array).tobytes())
    made.update(more.encode())
    return made.hexdigest()
