"""A task: features, labels and class names, checked once, on the host, at the door."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

ArrayLike = Any

_ROWS_AT_ONCE = 8192  # rows of features looked at together, so that checks need little memory


class Samples(NamedTuple):
    """What pure functions see of a task: a pytree of arrays, stackable for `vmap`.

    Attributes:
      features: `(n, d)` float.
      labels: `(n,)` int32, class indices; any value where `mask` is False.
      mask: `(n,)` bool, False for padding and for items without a known label.
    """

    features: ArrayLike
    labels: ArrayLike
    mask: ArrayLike


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """Features with class labels. Build it with `Task.from_arrays`, which checks everything.

    A task is a pytree (names are static), so it can be passed through `jax.jit`; to stack several tasks for
    `jax.vmap` use `task.samples`, which carries no names.

    Attributes:
      features: `(n, d)` float array.
      labels: `(n,)` int32 class indices; 0 where `labelled` is False.
      labelled: `(n,)` bool, whether the label is known.
      class_names: the `K` class names, in the order of the indices.
      name: a name for messages and tables.
      groups: `(n,)` int64 group indices or None; items of one group never sit on both sides of a split.
    """

    features: ArrayLike
    labels: ArrayLike
    labelled: ArrayLike
    class_names: tuple[Hashable, ...]
    name: str = "task"
    groups: ArrayLike | None = None

    @classmethod
    def from_arrays(
        cls,
        features: ArrayLike,
        labels: ArrayLike | None,
        class_names: Sequence[Hashable] | None = None,
        name: str = "task",
        *,
        groups: ArrayLike | None = None,
        labelled: ArrayLike | None = None,
    ) -> Task:
        """Check arrays and make a task of them.

        Args:
          features: `(n, d)` real numbers, finite, n >= 2.
          labels: `(n,)` labels, any hashable; or None when no label is known.
          class_names: the classes in the order wanted. Integer labels are then indices into it, other labels
            must be members of it. Without it the classes are the distinct labels, sorted where they can be.
          name: for messages and tables.
          groups: `(n,)` any hashable; items of one group stay together in every split.
          labelled: `(n,)` bool; labels where it is False are ignored.

        Raises:
          ValueError: names the argument, what was found and what to do.
        """
        features = _check_features(features, name)
        n = features.shape[0]
        known = _check_mask(labelled, n, name)
        if labels is None:
            if labelled is not None and known.any():
                raise ValueError(f"labelled: task {name!r} marks items as labelled but labels is None; pass the labels")
            known = np.zeros(n, bool)
            codes = np.zeros(n, np.int32)
            names = tuple(class_names) if class_names is not None else ()
            _check_names(names, name)
        else:
            codes, names = _encode_labels(labels, known, class_names, n, name)
        return cls(features, codes, known, names, str(name), _encode_groups(groups, n, name))

    # -- views -----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.features.shape[0]

    @property
    def dim(self) -> int:
        """Number of features d."""
        return self.features.shape[1]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def samples(self) -> Samples:
        """The arrays alone; `mask` is True where the label is known."""
        return Samples(self.features, self.labels, self.labelled)

    @property
    def counts(self) -> np.ndarray:
        """Labelled items of each class, `(K,)`."""
        return np.bincount(np.asarray(self.labels)[np.asarray(self.labelled)], minlength=self.num_classes)

    @property
    def prior(self) -> np.ndarray:
        """Share of each class among the labelled items, `(K,)` float64."""
        counts = self.counts
        return counts / max(counts.sum(), 1)

    def take(self, index: np.ndarray) -> Task:
        """The items of `index`, in that order; class names stay, so a class may become empty."""
        groups = None if self.groups is None else self.groups[index]
        return dataclasses.replace(
            self, features=self.features[index], labels=self.labels[index], labelled=self.labelled[index], groups=groups
        )

    def split(self, holdout: float, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
        """Stratified, group-aware indices (learning, evaluation); the same key gives the same split.

        Every class keeps at least one item for learning; unlabelled items are all in the learning part. Items that
        are exact copies of each other stay together, so that nothing evaluated was seen while learning.

        Raises:
          ValueError: if `holdout` is not in (0, 1) or nothing can be held out.
        """
        if not 0 < holdout < 1:
            raise ValueError(f"holdout: found {holdout}; give a share between 0 and 1, or 0 for no hold-out")
        fold = _deal(self, np.array([1 - holdout, holdout]), key, holdout=True)
        return np.flatnonzero(fold != 1), np.flatnonzero(fold == 1)

    def folds(self, number: int, key: jax.Array) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`number` pairs of indices (learning, evaluation) whose evaluation parts share no item."""
        if number < 2:
            raise ValueError(f"folds: found {number}; cross-fitting needs at least 2")
        fold = _deal(self, np.full(number, 1 / number), key, holdout=False)
        for k in range(number):
            yield np.flatnonzero(fold != k), np.flatnonzero(fold == k)


def _task_flatten(task: Task):
    return (task.features, task.labels, task.labelled, task.groups), (task.class_names, task.name)


def _task_unflatten(aux, leaves) -> Task:
    features, labels, labelled, groups = leaves
    return Task(features, labels, labelled, aux[0], aux[1], groups)


jax.tree_util.register_pytree_node(Task, _task_flatten, _task_unflatten)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Standardizer:
    """`x -> clip((x - mean) / scale)`, fitted on a learning part and applied to everything.

    `scale` is the standard deviation with a floor relative to the median one: nearly dead features would otherwise give
    z-scores in the thousands on unseen items. Constant features become zeros.

    Attributes:
      mean, scale: `(d,)`.
      clip: scalar; z-scores beyond it are cut, `inf` for none.
    """

    mean: ArrayLike
    scale: ArrayLike
    clip: ArrayLike

    @classmethod
    def fit(cls, features: np.ndarray, clip: float = np.inf, floor: float = 0.1) -> Standardizer:
        mean = np.mean(features, axis=0, dtype=np.float64)
        var = np.zeros_like(mean)
        for start in range(0, len(features), _ROWS_AT_ONCE):
            part = features[start : start + _ROWS_AT_ONCE] - mean
            var += np.einsum("nd,nd->d", part, part)
        scale = np.sqrt(var / len(features))
        positive = scale[scale > 1e-12 * np.maximum(np.abs(mean), 1e-300)]
        lowest = floor * np.median(positive) if positive.size else 1.0
        dtype = features.dtype if features.dtype.kind == "f" else np.float32
        return cls(mean.astype(dtype), np.maximum(scale, lowest).astype(dtype), np.asarray(clip, dtype))

    @classmethod
    def identity(cls, dim: int, dtype: Any = np.float32) -> Standardizer:
        return cls(np.zeros(dim, dtype), np.ones(dim, dtype), np.asarray(np.inf, dtype))

    def __call__(self, features: ArrayLike) -> ArrayLike:
        return ((features - self.mean) / self.scale).clip(-self.clip, self.clip)

    def fold_into(self, weight: ArrayLike, bias: ArrayLike) -> tuple[ArrayLike, ArrayLike]:
        """Weight and bias on raw features that give the logits of `weight, bias` on unclipped standardised ones."""
        raw = weight / self.scale
        return raw, bias - raw @ self.mean

    def unfold_from(self, weight: ArrayLike, bias: ArrayLike) -> tuple[ArrayLike, ArrayLike]:
        """The inverse of `fold_into`."""
        return weight * self.scale, bias + weight @ self.mean


# -- checks at the door ------------------------------------------------------------------------------------------------


def _check_features(features: ArrayLike, name: str) -> np.ndarray:
    features = np.asarray(features)
    where = f"features: task {name!r}"
    if features.dtype == object or (features.dtype.kind not in "fiub" and features.dtype.name != "bfloat16"):
        raise ValueError(f"{where} has dtype {features.dtype}; real numbers are needed")
    if features.ndim != 2:
        raise ValueError(f"{where} has shape {features.shape}; (samples, features) is needed, flatten the rest")
    if features.shape[0] < 2 or features.shape[1] < 1:
        raise ValueError(f"{where} has shape {features.shape}; at least 2 samples and 1 feature are needed")
    wide = features.dtype == np.float64 and jax.config.read("jax_enable_x64")
    dtype = np.float64 if wide else np.float32
    with np.errstate(over="ignore"):
        features = np.ascontiguousarray(features, dtype)
    for start in range(0, len(features), _ROWS_AT_ONCE):
        bad = ~np.isfinite(features[start : start + _ROWS_AT_ONCE]).all(axis=1)
        if bad.any():
            row = start + int(np.flatnonzero(bad)[0])
            raise ValueError(
                f"{where} is NaN, infinite or beyond {np.dtype(dtype).name} in row {row}; remove or repair such rows"
            )
    return features


def _check_mask(labelled: ArrayLike | None, n: int, name: str) -> np.ndarray:
    if labelled is None:
        return np.ones(n, bool)
    labelled = np.asarray(labelled)
    if labelled.dtype != bool or labelled.shape != (n,):
        raise ValueError(
            f"labelled: task {name!r} has dtype {labelled.dtype} and shape {labelled.shape}; "
            f"a boolean array of shape ({n},) is needed, True where the label is known"
        )
    return labelled


def _check_names(names: tuple, name: str) -> None:
    if len(set(names)) != len(names):
        twice = next(c for c in names if names.count(c) > 1)
        raise ValueError(f"class_names: task {name!r} lists {twice!r} twice; every class needs its own name")


def _plain(value: Any) -> Hashable:
    """A NumPy scalar as the Python value it holds, so that names print and compare as one would write them."""
    return value.item() if isinstance(value, np.generic) else value


def _encode_labels(
    labels: ArrayLike, known: np.ndarray, class_names: Sequence[Hashable] | None, n: int, name: str
) -> tuple[np.ndarray, tuple[Hashable, ...]]:
    where = f"labels: task {name!r}"
    if isinstance(labels, (list, tuple)) and any(isinstance(x, (list, tuple, set, np.ndarray)) for x in labels):
        # Tuples may be labels of their own only when they cannot be a rectangular array of several labels.
        raise ValueError(f"{where} holds several labels per item; multi-label tasks are not supported, give one each")
    array = _as_array(labels)
    if array.ndim == 2:
        onehot = array.dtype.kind in "biuf" and ((array == 0) | (array == 1)).all() and (array.sum(1) == 1).all()
        hint = "one-hot labels: pass labels.argmax(1)" if onehot else "multi-label tasks are not supported"
        raise ValueError(f"{where} has shape {array.shape}, expected ({n},); {hint}")
    if array.shape != (n,):
        raise ValueError(f"{where} has shape {array.shape}, expected ({n},), one label for each row of features")
    if not known.any():
        names = tuple(class_names) if class_names is not None else ()
        _check_names(names, name)
        return np.zeros(n, np.int32), names
    if array.dtype.kind in "fc":
        values = array[known]
        if array.dtype.kind == "c" or not np.isfinite(values).all() or (values != np.round(values)).any():
            raise ValueError(
                f"{where} holds fractions or NaN; regression targets are not supported, "
                "and unknown labels are marked with labelled="
            )
        array = np.where(known, array, 0).astype(np.int64)
    integral = array.dtype.kind in "iu"
    if class_names is not None:
        names = tuple(_plain(c) for c in class_names)
        _check_names(names, name)
        if integral and not set(np.unique(array[known]).tolist()) <= set(names):
            bad = (array < 0) | (array >= len(names))
            if (bad & known).any():
                row = int(np.flatnonzero(bad & known)[0])
                raise ValueError(
                    f"{where} is {array[row]} in row {row}, but class_names has {len(names)} entries; "
                    f"integer labels must lie in 0..{len(names) - 1}"
                )
            codes = array
        elif integral and set(np.unique(array[known]).tolist()) <= set(names):
            position = {c: i for i, c in enumerate(names)}
            codes = np.array([position[v] if k else 0 for v, k in zip(array.tolist(), known, strict=True)])
        elif integral:
            codes = array
        else:
            position = {c: i for i, c in enumerate(names)}
            codes = np.zeros(n, np.int64)
            for row in np.flatnonzero(known):
                value = _plain(array[row])
                if value not in position:
                    raise ValueError(f"{where} is {value!r} in row {row}, which is not in class_names")
                codes[row] = position[value]
    elif integral or array.dtype.kind in "bUS":
        values, inverse = np.unique(array[known], return_inverse=True)
        names = tuple(_plain(v) for v in values)
        codes = np.zeros(n, np.int64)
        codes[known] = inverse
    else:
        names, codes = _encode_objects(labels, known, where)
    counts = np.bincount(codes[known], minlength=len(names))
    if (counts == 0).any():
        empty = names[int(np.flatnonzero(counts == 0)[0])]
        raise ValueError(f"class_names: task {name!r} has no sample of class {empty!r}; drop it or add samples")
    return np.where(known, codes, 0).astype(np.int32), names


def _as_array(labels: ArrayLike) -> np.ndarray:
    """Labels as an array; a list of several kinds keeps them apart instead of turning all into text."""
    if isinstance(labels, (list, tuple)) and len({isinstance(x, str) for x in labels}) == 2:
        boxed = np.empty(len(labels), object)
        boxed[:] = labels
        return boxed
    return np.asarray(labels)


def _encode_objects(labels: ArrayLike, known: np.ndarray, where: str) -> tuple[tuple[Hashable, ...], np.ndarray]:
    items = list(labels)
    try:
        distinct = list(dict.fromkeys(item for item, k in zip(items, known, strict=True) if k))
    except TypeError:
        raise ValueError(f"{where} holds values that cannot be hashed; use strings, numbers or tuples") from None
    if any(item is None or item != item for item in distinct):
        raise ValueError(f"{where} holds None or NaN; mark unknown labels with labelled= instead")
    with contextlib.suppress(TypeError):  # of several kinds: kept in the order of appearance
        distinct.sort()
    position = {c: i for i, c in enumerate(distinct)}
    codes = np.array([position[item] if k else 0 for item, k in zip(items, known, strict=True)])
    return tuple(distinct), codes


def _encode_groups(groups: ArrayLike | None, n: int, name: str) -> np.ndarray | None:
    if groups is None:
        return None
    items = list(groups)
    if len(items) != n:
        raise ValueError(f"groups: task {name!r} has {len(items)} entries, expected {n}, one for each row of features")
    position: dict[Hashable, int] = {}
    return np.array([position.setdefault(_plain(g), len(position)) for g in items], np.int64)


# -- splits ------------------------------------------------------------------------------------------------------------


def generator(key: jax.Array) -> np.random.Generator:
    """A NumPy generator for host-side choices, determined by a JAX key."""
    data = jax.random.key_data(key)  # new-style and raw keys alike
    return np.random.default_rng(np.asarray(data).astype(np.uint32).ravel().tolist())


def _bundles(task: Task) -> np.ndarray:
    """`(n,)` indices: equal for items that must stay together (same group, or the same feature vector)."""
    n = len(task)
    features = np.asarray(task.features)
    first: dict[Any, int] = {}
    # Adding zero turns -0.0 into 0.0, which compare equal.
    copies = np.array([first.setdefault((row + 0.0).tobytes(), i) for i, row in enumerate(features)])
    if task.groups is None:
        return copies
    # Connected components of "same group" and "same vector", by union-find with path halving.
    parent = np.arange(n)

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    leader: dict[int, int] = {}
    for i, g in enumerate(np.asarray(task.groups).tolist()):
        for j in (leader.setdefault(g, i), int(copies[i])):
            a, b = root(i), root(j)
            parent[max(a, b)] = min(a, b)
    return np.array([root(i) for i in range(n)])


def _deal(task: Task, shares: np.ndarray, key: jax.Array, *, holdout: bool) -> np.ndarray:
    """Fold of each item, `(n,)`; -1 for items that always learn. Class shares follow `shares` as closely as bundles allow."""
    rng = generator(key)
    labels, known = np.asarray(task.labels), np.asarray(task.labelled)
    fold = np.full(len(task), -1)
    bundles = _bundles(task)
    members = np.flatnonzero(known)
    ids, inverse = np.unique(bundles[members], return_inverse=True)
    if len(ids) == len(members):
        for k in range(task.num_classes):
            mine = rng.permutation(members[labels[members] == k])
            fold[mine] = _deal_class(len(mine), shares, rng, holdout)
    else:
        table = np.zeros((len(ids), task.num_classes))
        np.add.at(table, (inverse, labels[members]), 1)
        wanted = shares[:, None] * table.sum(0)
        filled = np.zeros_like(wanted)
        order = rng.permutation(len(ids))
        order = order[np.argsort(-table[order].sum(1), kind="stable")]
        place = np.zeros(len(ids), int)
        # A bundle that holds a whole class always learns: no fold could evaluate that class after seeing it.
        whole = ((table > 0) & (table == table.sum(0))).any(axis=1)
        for b in order:
            if whole[b]:
                place[b] = 0 if holdout else -1
                continue
            # Put the bundle where it fills the most of what is still missing.
            short = (wanted - filled) / np.maximum(wanted, 1e-9)
            place[b] = int(np.argmax((short * table[b]).sum(1) + 1e-9 * rng.random(len(shares))))
            filled[place[b]] += table[b]
        fold[members] = place[inverse]
    _check_folds(task, fold, len(shares), holdout)
    return fold


def _deal_class(n: int, shares: np.ndarray, rng: np.random.Generator, holdout: bool) -> np.ndarray:
    """Folds for n shuffled items of one class; a single item always learns."""
    if n < 2:
        return np.full(n, -1)
    if holdout:
        held = min(max(round(shares[1] * n), 1), n - 1)
        return np.r_[np.zeros(n - held, int), np.ones(held, int)]
    return (np.arange(n) + rng.integers(len(shares))) % len(shares)


def _check_folds(task: Task, fold: np.ndarray, number: int, holdout: bool) -> None:
    labels, known = np.asarray(task.labels), np.asarray(task.labelled)
    for k in [1] if holdout else range(number):
        inside = known & (fold == k)
        if not inside.any():
            raise ValueError(
                f"holdout: task {task.name!r} leaves no item to evaluate on (groups or exact copies hold the items "
                "together, or every class has one item); give more items or set holdout=0"
            )
        unseen = np.setdiff1d(labels[inside], labels[known & (fold != k)])
        if unseen.size:
            raise ValueError(
                f"labels: all items of class {task.class_names[unseen[0]]!r} of task {task.name!r} fall into one part "
                "of the split (one group or exact copies); a class must be seen in learning to be evaluated"
            )
