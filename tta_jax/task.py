"""A task: features, labels and class names, checked once, on the host, at the door."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import numbers
import operator
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

ArrayLike = Any

_ROWS_AT_ONCE = (
    8192  # rows of features looked at together, so that checks need little memory
)
_ROWS_IN_CACHE = 1024  # rows hashed or compared together


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
    """Features with class labels. Build it with `Task.from_arrays`, which checks
    everything.

    A task is a pytree (names are static), so it can be passed through `jax.jit`; to
    stack several tasks for `jax.vmap` use `task.samples`, which carries no names.

    Attributes:
      features: `(n, d)` float array.
      labels: `(n,)` int32 class indices; 0 where `labelled` is False.
      labelled: `(n,)` bool, whether the label is known.
      class_names: the `K` class names, in the order of the indices.
      name: a name for messages and tables.
      groups: `(n,)` int64 group indices or None; items of one group never sit on both
        sides of a split, labelled or not.
      encoder: whose features these are; "" where it is not known. Tasks of different
        encoders are never compared.
    """

    features: ArrayLike
    labels: ArrayLike
    labelled: ArrayLike
    class_names: tuple[Hashable, ...]
    name: str = "task"
    groups: ArrayLike | None = None
    encoder: str = ""

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
        encoder: str = "",
    ) -> Task:
        """Check arrays and make a task of them.

        Args:
          features: `(n, d)` real numbers, finite, n >= 2.
          labels: `(n,)` labels, any hashable (tuples in an object array; bytes become
            text); or None when no label is known.
          class_names: the classes in the order wanted. Labels must be members of it,
            but whole numbers are indices into it unless the names are whole numbers too
            and hold every label. Without it the classes are the distinct labels, sorted
            where they can be.
          name: for messages and tables.
          groups: `(n,)` any hashable; items of one group stay together in every split.
          labelled: `(n,)` bool; labels where it is False are ignored.
          encoder: whose features these are, where there are several.

        Raises:
          ValueError: names the argument, what was found and what to do.
        """
        features = _check_features(features, name)
        n = features.shape[0]
        known = _check_mask(labelled, n, name)
        if labels is None:
            names = () if class_names is None else _check_names(class_names, name)
            if labelled is not None and known.any():
                raise ValueError(
                    f"labelled: task {name!r} marks items as labelled but labels "
                    "is "
                    "None; pass the labels"
                )
            known, codes = np.zeros(n, bool), np.zeros(n, np.int32)
        else:
            codes, names = encode_labels(labels, known, class_names, name)
            _refuse_empty(codes[known], names, name)
        return cls(
            features,
            codes,
            known,
            names,
            str(name),
            _encode_groups(groups, n, name),
            str(encoder),
        )

    # -- views -------------------------------------------------------------------------

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
        return np.bincount(
            np.asarray(self.labels)[np.asarray(self.labelled)],
            minlength=self.num_classes,
        )

    @property
    def prior(self) -> np.ndarray:
        """Share of each class among the labelled items, `(K,)` float64."""
        counts = self.counts
        return counts / max(counts.sum(), 1)

    def take(self, index: np.ndarray) -> Task:
        """The items of `index`, in that order; class names stay, so a class may become
        empty.
        """
        groups = None if self.groups is None else self.groups[index]
        return dataclasses.replace(
            self,
            features=self.features[index],
            labels=self.labels[index],
            labelled=self.labelled[index],
            groups=groups,
        )

    def split(
        self, holdout: float, key: jax.Array | Seed
    ) -> tuple[np.ndarray, np.ndarray]:
        """Stratified, group-aware indices (learning, evaluation); the same key gives
        the same split.

        Every class keeps at least one item for learning. Items that are exact copies of
        each other stay together, as groups do, so that nothing evaluated was seen while
        learning. Unlabelled items learn, except those whose group or
        copy is evaluated: they are in neither part.

        Raises:
          ValueError: if `holdout` is not in (0, 1) or nothing can be held out.
        """
        share = real_number(holdout)
        if not 0 < share < 1:
            raise ValueError(
                f"holdout: found {holdout!r}; give a share between 0 and 1, or 0 "
                "for "
                "no hold-out"
            )
        fold = _deal(self, np.array([1 - share, share]), key, holdout=True)
        return self._parts(fold, 1)

    def folds(
        self, number: int, key: jax.Array | Seed
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`number` pairs of indices (learning, evaluation) whose evaluation parts share
        no item.

        Each pair is as strict as a `split`: an unlabelled item is left out where its
        group or copy is evaluated.
        """
        count = whole_number(number)
        if count is None or count < 2:
            raise ValueError(
                f"folds: found {number!r}; cross-fitting needs a whole number of "
                "at "
                "least 2"
            )
        fold = _deal(self, np.full(count, 1 / count), key, holdout=False)
        return (self._parts(fold, k) for k in range(count))

    def _parts(self, fold: np.ndarray, evaluated: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices that learn and that are evaluated; unlabelled items of the evaluated
        fold do neither.
        """
        inside = fold == evaluated
        return np.flatnonzero(~inside), np.flatnonzero(
            inside & np.asarray(self.labelled)
        )


def _task_flatten(task: Task):
    return (task.features, task.labels, task.labelled, task.groups), (
        task.class_names,
        task.name,
        task.encoder,
    )


def _task_unflatten(aux, leaves) -> Task:
    features, labels, labelled, groups = leaves
    class_names, name, encoder = aux
    return Task(features, labels, labelled, class_names, name, groups, encoder)


jax.tree_util.register_pytree_node(Task, _task_flatten, _task_unflatten)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Standardizer:
    """`x -> clip((x - mean) / scale)`, fitted on a learning part and applied to
    everything.

    `scale` is the standard deviation with a floor relative to the median one: nearly
    dead features would otherwise give z-scores in the thousands on unseen items.
    Constant features become zeros.

    Attributes:
      mean, scale: `(d,)`.
      clip: scalar; z-scores beyond it are cut, `inf` for none.
    """

    mean: ArrayLike
    scale: ArrayLike
    clip: ArrayLike

    @classmethod
    def fit(
        cls, features: np.ndarray, clip: float = np.inf, floor: float = 0.1
    ) -> Standardizer:
        mean = np.mean(features, axis=0, dtype=np.float64)
        var = np.zeros_like(mean)
        for start in range(0, len(features), _ROWS_AT_ONCE):
            part = features[start : start + _ROWS_AT_ONCE] - mean
            var += np.einsum("nd,nd->d", part, part)
        scale = np.sqrt(var / len(features))
        positive = scale[scale > 1e-12 * np.maximum(np.abs(mean), 1e-300)]
        lowest = floor * np.median(positive) if positive.size else 1.0
        dtype = features.dtype if features.dtype.kind == "f" else np.float32
        return cls(
            mean.astype(dtype),
            np.maximum(scale, lowest).astype(dtype),
            np.asarray(clip, dtype),
        )

    @classmethod
    def identity(cls, dim: int, dtype: Any = np.float32) -> Standardizer:
        return cls(np.zeros(dim, dtype), np.ones(dim, dtype), np.asarray(np.inf, dtype))

    def __call__(self, features: ArrayLike) -> ArrayLike:
        return ((features - self.mean[None]) / self.scale[None]).clip(
            -self.clip, self.clip
        )

    def fold_into(
        self, weight: ArrayLike, bias: ArrayLike
    ) -> tuple[ArrayLike, ArrayLike]:
        """Weight and bias on raw features that give the logits of `weight, bias` on
        unclipped standardised ones.
        """
        raw = weight / self.scale[None]
        return raw, bias - raw @ self.mean


# -- padding ---------------------------------------------------------------------------


def bucket(n: int) -> int:
    """The smallest size of a ladder (16, 32, 64, then four steps an octave) that holds
    n: few shapes, little padding.
    """
    n = int(n)  # NumPy integers have no bit_length everywhere
    if n <= 64:
        return next(s for s in (16, 32, 64) if s >= n)
    return ladder(n, 4)


def ladder(n: int, steps: int) -> int:
    """The smallest size that holds n of a geometric ladder with so many steps an
    octave: 1, 2, 4 or 8; exact up to that many.
    """
    if n <= steps:
        return n
    size = (
        1 << (n - 1).bit_length()
    )  # the power of two at or above n, and the steps below it
    return next(
        s
        for s in (size // 2 + size * k // (2 * steps) for k in range(1, steps + 1))
        if s >= n
    )


def pad_rows(values: np.ndarray, size: int) -> np.ndarray:
    return np.pad(values, [(0, size - len(values))] + [(0, 0)] * (values.ndim - 1))


# -- checks at the door ----------------------------------------------------------------


def whole_number(value: Any) -> int | None:
    """`value` as an int; None for what is not a whole number: 2.5, nan, text, but also
    True.
    """
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def real_number(value: Any) -> float:
    """`value` as a float; NaN, which no range holds, for what is not a real number:
    text, vectors, but also True.
    """
    if getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _array(values: ArrayLike, where: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError:  # NumPy's many words about sequences of different lengths
        raise ValueError(f"{where} is not an array; give rows of one length") from None


def _check_features(features: ArrayLike, name: str) -> np.ndarray:
    where = f"features: task {name!r}"
    features = _array(features, where)
    if features.dtype == object or (
        features.dtype.kind not in "fiub" and features.dtype.name != "bfloat16"
    ):
        raise ValueError(f"{where} has dtype {features.dtype}; real numbers are needed")
    if features.ndim != 2:
        raise ValueError(
            f"{where} has shape {features.shape}; (samples, features) is needed, "
            "flatten the rest"
        )
    if features.shape[0] < 2 or features.shape[1] < 1:
        raise ValueError(
            f"{where} has shape {features.shape}; at least 2 samples and 1 feature "
            "are "
            "needed"
        )
    wide = features.dtype == np.float64 and jax.config.read("jax_enable_x64")
    dtype = np.float64 if wide else np.float32
    with np.errstate(over="ignore"):
        features = np.ascontiguousarray(features, dtype)
    for start in range(0, len(features), _ROWS_AT_ONCE):
        bad = ~np.isfinite(features[start : start + _ROWS_AT_ONCE]).all(axis=1)
        if bad.any():
            row = start + int(np.flatnonzero(bad)[0])
            raise ValueError(
                f"{where} is NaN, infinite or beyond {np.dtype(dtype).name} in row "
                f"{row}; remove or repair such rows"
            )
    return features


def _check_mask(labelled: ArrayLike | None, n: int, name: str) -> np.ndarray:
    if labelled is None:
        return np.ones(n, bool)
    labelled = _array(labelled, f"labelled: task {name!r}")
    if labelled.dtype != bool or labelled.shape != (n,):
        raise ValueError(
            f"labelled: task {name!r} has dtype {labelled.dtype} and shape "
            f"{labelled.shape}; "
            f"a boolean array of shape ({n},) is needed, True where the label is known"
        )
    return labelled


def _check_names(class_names: Sequence[Hashable], name: str) -> tuple[Hashable, ...]:
    where = f"class_names: task {name!r}"
    try:
        if isinstance(class_names, (str, bytes, set, frozenset)):
            # can be iterated over, but not class by class in an order of the user's
            raise TypeError
        items = list(class_names)
    except TypeError:
        raise ValueError(
            f"{where} has {type(class_names).__name__} in place of names; give a "
            "list "
            "with one name per class"
        ) from None
    names = tuple(_plain(item, where) for item in items)
    try:
        repeated = len(set(names)) != len(names)
    except TypeError:
        raise ValueError(
            f"{where} holds values that cannot be hashed; use strings or numbers"
        ) from None
    if any(item is None or item != item for item in names):
        raise ValueError(f"{where} holds None or NaN; give every class a name")
    if repeated:
        twice = next(c for c in names if names.count(c) > 1)
        raise ValueError(
            f"{where} lists {twice!r} twice; every class needs its own name"
        )
    return names


def _plain(value: Any, where: str) -> Any:
    """A NumPy scalar as the Python value it holds and bytes as text, so that names
    print, compare and are stored as such.
    """
    if isinstance(value, np.generic):
        item = value.item()
        # Of nanoseconds NumPy would leave no more than their number.
        value = (
            str(value) if value.dtype.kind in "mM" and isinstance(item, int) else item
        )
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ValueError(
            f"{where} holds bytes that are not UTF-8 ({value!r}); decode them first"
        ) from None


def encode_labels(
    labels: ArrayLike, known: np.ndarray, names: Sequence[Hashable] | None, name: str
) -> tuple[np.ndarray, tuple[Hashable, ...]]:
    """Class indices `(n,)`, 0 where the label is not `known`, and class names; see
    `Task.from_arrays`.

    Raises:
      ValueError: names the argument, what was found and what to do.
    """
    names = None if names is None else _check_names(names, name)
    where = f"labels: task {name!r}"
    rows = np.flatnonzero(known)
    values, inverse = _distinct(_label_array(labels, known, where)[rows], where)
    if names is None:
        names, index = tuple(values), np.arange(len(values))
    else:
        index = _positions(
            values, names, where, lambda k: rows[np.argmax(inverse == k)]
        )
    codes = np.zeros(len(known), np.int32)
    codes[rows] = index[inverse]
    return codes, names


def _refuse_empty(codes: np.ndarray, names: tuple[Hashable, ...], name: str) -> None:
    empty = np.setdiff1d(np.arange(len(names)), codes)
    if codes.size and empty.size:
        raise ValueError(
            f"class_names: task {name!r} has no sample of class "
            f"{names[empty[0]]!r}; "
            "drop it or add samples"
        )


def _label_array(labels: ArrayLike, known: np.ndarray, where: str) -> np.ndarray:
    """Labels as an array of the right shape; whole numbers kept as floats become
    integers.
    """
    if isinstance(labels, (list, tuple)):
        if any(isinstance(x, (list, tuple, set, np.ndarray)) for x in labels):
            raise ValueError(
                f"{where} holds several labels per item; multi-label tasks are not "
                "supported, give one each"
            )
        if len({(isinstance(x, str), isinstance(x, bytes)) for x in labels}) > 1:
            # NumPy would turn a list of several kinds into text.
            boxed = np.empty(len(labels), object)
            boxed[:] = labels
            labels = boxed
    array = _array(labels, where)
    n = len(known)
    if array.ndim == 2:
        onehot = (
            array.dtype.kind in "biuf"
            and ((array == 0) | (array == 1)).all()
            and (array.sum(1) == 1).all()
        )
        hint = (
            "one-hot labels: pass labels.argmax(1)"
            if onehot
            else "multi-label tasks are not supported"
        )
        raise ValueError(f"{where} has shape {array.shape}, expected ({n},); {hint}")
    if array.shape != (n,):
        raise ValueError(
            f"{where} has shape {array.shape}, expected ({n},), one label for each "
            "row "
            "of features"
        )
    if array.dtype.kind not in "fc":
        return array
    values = array[known]
    if (
        array.dtype.kind == "c"
        or not np.isfinite(values).all()
        or (values != np.round(values)).any()
    ):
        raise ValueError(
            f"{where} holds fractions or NaN; regression targets are not supported, "
            "and unknown labels are marked with labelled="
        )
    beyond = np.abs(values.astype(np.float64)) >= 2.0**63
    if beyond.any():
        raise ValueError(
            f"{where} holds {values[beyond][0]}, beyond 64-bit integers; use "
            "strings "
            "or smaller numbers"
        )
    return np.where(known, array, 0).astype(np.int64)


def _distinct(labels: np.ndarray, where: str) -> tuple[list[Hashable], np.ndarray]:
    """The distinct labels, sorted where they can be, and for every label which of them
    it is.
    """
    if labels.dtype.kind in "biuUS":
        values, inverse = np.unique(labels, return_inverse=True)
        return [_plain(v, where) for v in values], inverse
    items = [_plain(item, where) for item in labels]
    try:
        distinct = list(dict.fromkeys(items))
        missing = any(item is None or item != item for item in distinct)
    except TypeError:
        raise ValueError(
            f"{where} holds values that cannot be hashed or compared; use strings "
            "or "
            "numbers"
        ) from None
    if missing:
        raise ValueError(
            f"{where} holds None or NaN; mark unknown labels with labelled= instead"
        )
    with contextlib.suppress(
        TypeError
    ):  # of several kinds: kept in the order of appearance
        distinct = sorted(distinct)
    position = {c: i for i, c in enumerate(distinct)}
    return distinct, np.array([position[item] for item in items], np.int64)


def _positions(
    values: list, names: tuple[Hashable, ...], where: str, row_of: Callable[[int], int]
) -> np.ndarray:
    """For each distinct label its place in `names`: as a member of it, or as an index;
    `row_of` finds a label's row.
    """

    def whole(items):
        return all(
            not isinstance(v, bool) and isinstance(v, numbers.Real) and v % 1 == 0
            for v in items
        )

    position = {c: i for i, c in enumerate(names)}
    if not whole(values) or (whole(names) and all(v in position for v in values)):
        for k, value in enumerate(values):
            if value not in position:
                raise ValueError(
                    f"{where} is {value!r} in row {row_of(k)}, which is not in "
                    "class_names"
                )
        return np.array([position[v] for v in values], np.int64)
    for k, value in enumerate(values):
        if not 0 <= value < len(names):
            raise ValueError(
                f"{where} is {value!r} in row {row_of(k)}, but class_names has "
                f"{len(names)} entries; "
                f"integer labels must lie in 0..{len(names) - 1} or all be class names"
            )
    return np.array(values, np.int64)


def _encode_groups(groups: ArrayLike | None, n: int, name: str) -> np.ndarray | None:
    if groups is None:
        return None
    where = f"groups: task {name!r}"
    position: dict[Hashable, int] = {}
    try:
        items = list(np.asarray(groups) if isinstance(groups, jax.Array) else groups)
        codes = [
            position.setdefault(
                g.item() if isinstance(g, np.generic) else g, len(position)
            )
            for g in items
        ]
    except TypeError:
        raise ValueError(
            f"{where} is not a flat list of groups; give one string or number per row"
        ) from None
    if len(items) != n:
        raise ValueError(
            f"{where} has {len(items)} entries, expected {n}, one for each row of "
            "features"
        )
    return np.array(codes, np.int64)


# -- splits ----------------------------------------------------------------------------


Seed = np.random.SeedSequence


def seed_of(key: jax.Array | Seed) -> Seed:
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


def child(seed: Seed, *path: int) -> Seed:
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


def first_copies(features: ArrayLike) -> np.ndarray:
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


def shared_rows(first: Task, second: Task) -> np.ndarray:
    """Indices of the items of `first` whose feature vector is exactly that of an item
    of `second`.

    Raises:
      ValueError: if the tasks have different numbers of features.
    """
    if first.dim != second.dim:
        raise ValueError(
            f"second: task {second.name!r} has {second.dim} features, "
            f"{first.name!r} "
            f"has {first.dim}"
        )
    rows = np.concatenate([np.asarray(second.features), np.asarray(first.features)])
    return np.flatnonzero(first_copies(rows)[len(second) :] < len(second))


def thinned(
    task: Task, index: np.ndarray, most: int, rng: np.random.Generator
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


def bundles(task: Task) -> np.ndarray:
    """`(n,)` indices below n: equal for items that must stay together (same group, or
    the same feature vector).
    """
    n = len(task)
    copies = first_copies(task.features)
    if task.groups is None:
        return copies
    # Connected components of "same group" and "same vector", by union-find with path
    # halving.
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


def _deal(
    task: Task, shares: np.ndarray, key: jax.Array | Seed, *, holdout: bool
) -> np.ndarray:
    """Fold of each item, `(n,)`; -1 for items that always learn. Class shares follow
    `shares` as closely as bundles allow.

    Unlabelled items get the fold of their bundle: while it is evaluated they must not
    be learned from.
    """
    rng = np.random.default_rng(seed_of(key))
    labels, known = np.asarray(task.labels), np.asarray(task.labelled)
    fold = np.full(len(task), -1)
    together = bundles(task)
    members = np.flatnonzero(known)
    ids, inverse = np.unique(together[members], return_inverse=True)
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


def _deal_class(
    n: int, shares: np.ndarray, rng: np.random.Generator, holdout: bool
) -> np.ndarray:
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
