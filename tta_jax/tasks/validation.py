"""Check the arrays from which tasks are made."""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tta_jax._internal.typing import ArrayLike
from tta_jax._internal.warning import warn_of_data
from tta_jax.tasks.containers import plain_scalar, unpack

# Numbers that stand for "no label": of Hugging Face's ClassLabel, and of losses that
# ignore an index.
NO_LABEL = (-1, -100)

# Rows of features that are checked together, so that checks need little memory.
ROWS_AT_ONCE = 8192


def as_array(values: ArrayLike, where: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError:  # NumPy's many words about sequences of different lengths
        raise ValueError(f"{where} is not an array; give rows of one length") from None


def check_features(features: ArrayLike, name: str) -> np.ndarray:
    where = f"features: task {name!r}"
    values, missing = unpack(features, where)
    features = as_array(values, where)
    if missing is not None and missing.any():
        row = int(np.flatnonzero(missing.reshape(len(missing), -1).any(1))[0])
        raise ValueError(
            f"{where} has no value in row {row} (masked or null); fill or remove such "
            "rows"
        )
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
            f"{where} has shape {features.shape}; at least 2 samples and 1 feature are "
            "needed"
        )
    wide = features.dtype == np.float64 and jax.config.read("jax_enable_x64")
    dtype = np.float64 if wide else np.float32
    with np.errstate(over="ignore"):
        features = np.ascontiguousarray(features, dtype)
    for start in range(0, len(features), ROWS_AT_ONCE):
        bad = ~np.isfinite(features[start : start + ROWS_AT_ONCE]).all(axis=1)
        if bad.any():
            row = start + int(np.flatnonzero(bad)[0])
            raise ValueError(
                f"{where} is NaN, infinite or beyond {np.dtype(dtype).name} in row "
                f"{row}; remove or repair such rows"
            )
    return features


def check_mask(labelled: ArrayLike, n: int, name: str) -> np.ndarray:
    labelled = as_array(labelled, f"labelled: task {name!r}")
    if labelled.dtype != bool or labelled.shape != (n,):
        raise ValueError(
            f"labelled: task {name!r} has dtype {labelled.dtype} and shape "
            f"{labelled.shape}; "
            f"a boolean array of shape ({n},) is needed, True where the label is known"
        )
    return labelled


def check_names(class_names: Sequence[Hashable], name: str) -> tuple[Hashable, ...]:
    where = f"class_names: task {name!r}"
    if isinstance(class_names, Mapping):
        class_names = _names_of_mapping(class_names, where)
    try:
        if isinstance(class_names, (str, bytes, set, frozenset)):
            # can be iterated over, but not class by class in an order of the user's
            raise TypeError
        items = list(class_names)
    except TypeError:
        raise ValueError(
            f"{where} has {type(class_names).__name__} in place of names; give a list "
            "with one name per class"
        ) from None
    names = tuple(plain_value(item, where) for item in items)
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


def _names_of_mapping(names: Mapping, where: str) -> list[Hashable]:
    """Names from a mapping of indices to names, or of names to indices.

    Raises:
      ValueError: it is neither, or could be both.
    """

    def indices(items):
        try:
            found = [int(item) for item in items]  # JSON has text as keys
        except (TypeError, ValueError):
            return None
        whole = all(
            str(item) == str(index) for item, index in zip(items, found, strict=True)
        )
        return found if whole and sorted(found) == list(range(len(found))) else None

    keys, values = list(names), list(names.values())
    by_key, by_value = indices(keys), indices(values)
    if (by_key is None) == (by_value is None):
        raise ValueError(
            f"{where} is a mapping that is not of names to 0..{len(names) - 1} nor the "
            "other way round; give a list with one name per class"
        )
    index, items = (by_value, keys) if by_key is None else (by_key, values)
    named = dict(zip(index or (), items, strict=True))
    return [named[k] for k in range(len(items))]


def plain_value(value: Any, where: str) -> Any:
    """A scalar as the Python value it holds and bytes as text, so that names print,
    compare and are stored as such.
    """
    value = plain_scalar(value, where)
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
    labels: ArrayLike,
    known: np.ndarray | None,
    names: Sequence[Hashable] | None,
    name: str,
    size: int,
) -> tuple[np.ndarray, np.ndarray, tuple[Hashable, ...]]:
    """Encode labels as class indices; see `Task.from_arrays`.

    Args:
      labels: as they were given.
      known: `(n,)` bool, where the label counts; None where the labels tell.
      names: the classes, or None.
      name: of the task, for messages.
      size: n.

    Returns:
      Indices `(n,)`, 0 where the label is not known; where it is; and class names.

    Raises:
      ValueError: names the argument, what was found and what to do.
    """
    names = None if names is None else check_names(names, name)
    where = f"labels: task {name!r}"
    given = np.ones(size, bool) if known is None else known
    array, missing = _label_array(labels, given, where)
    if known is None:
        known = ~(missing | _without_label(array, missing, names, where))
    elif (missing & known).any():
        raise ValueError(
            f"{where} has no label in row {int(np.argmax(missing & known))}, which "
            "labelled= marks as known"
        )
    rows = np.flatnonzero(known)
    values, inverse = _distinct(array[rows], where)
    if names is None:
        names, index = tuple(values), np.arange(len(values))
    else:
        index = _positions(
            values, names, where, lambda k: rows[np.argmax(inverse == k)]
        )
    codes = np.zeros(len(known), np.int32)
    codes[rows] = index[inverse]
    return codes, known, names


def _without_label(
    array: np.ndarray,
    missing: np.ndarray,
    names: tuple[Hashable, ...] | None,
    where: str,
) -> np.ndarray:
    """Rows in which -1 or -100 stands for "no label", `(n,)` bool.

    They do, with a warning, where the other labels are indices into names, or whole
    numbers from 0 on. Beside 1 alone, -1 is a class.
    """
    nothing = np.zeros(len(array), bool)
    if array.dtype.kind not in "i" and array.dtype != object:
        return nothing
    try:
        found = np.isin(array, NO_LABEL) & ~missing
    except TypeError:
        return nothing
    others = array[~found & ~missing]
    whole = all(
        isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in others
    )
    if not found.any() or not whole:
        return nothing
    least = min(others, default=0)
    if least < 0 or (names is None and least > 0):
        return nothing
    if names is not None and any(value in names for value in NO_LABEL):
        return nothing
    warn_of_data(
        f"{where} is {array[found][0]} in {int(found.sum())} rows, which counts as no "
        "label; give it another number or a name of its own to make it a class"
    )
    return found


def drop_empty_classes(
    codes: np.ndarray, known: np.ndarray, names: tuple[Hashable, ...], name: str
) -> tuple[np.ndarray, tuple[Hashable, ...]]:
    """Leave out the classes without an item, with a warning; all stay where no label is
    known.
    """
    used = np.unique(codes[known])
    if not used.size or used.size == len(names):
        return codes, names
    place = np.zeros(len(names), np.int32)
    place[used] = np.arange(used.size, dtype=np.int32)
    empty = [str(c) for c in np.delete(np.array(names, object), used)]
    warn_of_data(
        f"class_names: task {name!r} has no item of {len(empty)} of its {len(names)} "
        f"classes ({', '.join(empty[:5])}{', ...' if len(empty) > 5 else ''}): they "
        "are left out"
    )
    return place[codes], tuple(names[k] for k in used)


def refuse_empty_classes(
    codes: np.ndarray, names: tuple[Hashable, ...], name: str
) -> None:
    empty = np.setdiff1d(np.arange(len(names)), codes)
    if codes.size and empty.size:
        raise ValueError(
            f"class_names: task {name!r} has no sample of class {names[empty[0]]!r}; "
            "drop it or add samples"
        )


def _label_array(
    labels: ArrayLike, known: np.ndarray, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Labels as an array of the right shape; whole numbers kept as floats become
    integers. And where there are none: null, NaN, masked.
    """
    labels, marked = unpack(labels, where)
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
    array = as_array(labels, where)
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
            f"{where} has shape {array.shape}, expected ({n},), one label for each row "
            "of features"
        )
    missing = np.zeros(n, bool) if marked is None else marked
    if array.dtype.kind in "mM":
        missing = missing | np.isnat(array)
    if array.dtype == object:
        missing = missing | np.array([_is_null(item) for item in array], bool)
    if array.dtype.kind not in "fc":
        return array, missing
    if array.dtype.kind == "f":
        missing = missing | np.isnan(array)
    known = known & ~missing
    values = array[known]
    if (
        array.dtype.kind == "c"
        or not np.isfinite(values).all()
        or (values != np.round(values)).any()
    ):
        raise ValueError(
            f"{where} holds fractions or infinity; regression targets are not supported"
        )
    beyond = np.abs(values.astype(np.float64)) >= 2.0**63
    if beyond.any():
        raise ValueError(
            f"{where} holds {values[beyond][0]}, beyond 64-bit integers; use strings "
            "or smaller numbers"
        )
    return np.where(known, array, 0).astype(np.int64), missing


def _is_null(item: Any) -> bool:
    """Whether a label is None, NaN or another null."""
    if item is None or type(item).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(item, numbers.Real) and bool(item != item)


def _distinct(labels: np.ndarray, where: str) -> tuple[list[Hashable], np.ndarray]:
    """The distinct labels, sorted where they can be, and for every label which of them
    it is.
    """
    if labels.dtype.kind in "biuUS":
        values, inverse = np.unique(labels, return_inverse=True)
        return [plain_value(v, where) for v in values], inverse
    items = [plain_value(item, where) for item in labels]
    try:
        distinct = list(dict.fromkeys(items))
        missing = any(item is None or item != item for item in distinct)
    except TypeError:
        raise ValueError(
            f"{where} holds values that cannot be hashed or compared; use strings or "
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


def encode_groups(groups: ArrayLike | None, n: int, name: str) -> np.ndarray | None:
    if groups is None:
        return None
    where = f"groups: task {name!r}"
    position: dict[Hashable, int] = {}
    values, missing = unpack(groups, where)
    try:
        items = list(np.asarray(values) if isinstance(values, jax.Array) else values)
        codes = [
            position.setdefault(plain_value(g, where), len(position)) for g in items
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
    empty = np.array([_is_null(item) for item in items], bool)
    empty = empty if missing is None else empty | missing
    if empty.any():
        raise ValueError(
            f"{where} has no value in row {int(np.argmax(empty))}; give every item a "
            "group, one of its own where it has none"
        )
    return np.array(codes, np.int64)
