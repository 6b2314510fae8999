"""Features and heads in files: .npz, .npy, safetensors, Parquet. Labels, class names
and provenance travel with the features.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tta_jax._internal.files import files_below, reading
from tta_jax._internal.serialization import read_arrays
from tta_jax._internal.text import finite, one_line, printable, read_json
from tta_jax.data.io import formats
from tta_jax.data.io.npy_parts import data_folder, holds_parts, read_npy_parts
from tta_jax.data.io.tables import TABLES, TextFormat
from tta_jax.tasks.task import Task
from tta_jax.tasks.validation import check_names

_READ = {
    ".npz": formats.read_npz,
    ".npy": formats.read_npy_and_neighbour,
    ".safetensors": formats.read_safetensors,
}
_WRITE = {
    ".npz": formats.write_npz,
    ".npy": formats.write_npy,
    ".safetensors": formats.write_safetensors,
    ".parquet": formats.write_parquet,
}
FORMATS = (*_READ, ".parquet")
_DTYPES = {
    f"{kind}{bits}" for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64)
} | {"bfloat16"}
_KNOWN = ("features", "labels", "class_names", "groups", "labelled", "provenance")


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """Features of one data set under one encoder, as they lie in a file; `task()`
    checks them and makes a `Task`.

    Attributes:
      features: `(n, d)` real numbers, memory-mapped where the file allows.
      labels: `(n,)` labels or class indices, or None when no label is known.
      class_names: the classes in the order of the indices, or None.
      groups: `(n,)` or None; items of one group stay together in splits.
      labelled: `(n,)` bool or None.
      name: for messages and tables.
      provenance: where they come from (encoder, data set, split, versions,
        preprocessing, skipped items); JSON values.
    """

    features: Any
    labels: Any = None
    class_names: Sequence[Hashable] | None = None
    groups: Any = None
    labelled: Any = None
    name: str = "task"
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.features)

    def task(self, name: str | None = None) -> Task:
        """A `Task` of them, without classes that have no item.

        Raises:
          ValueError: as `Task.from_arrays`.
        """
        return Task.from_arrays(
            self.features,
            self.labels,
            self.class_names,
            name or self.name,
            groups=self.groups,
            labelled=self.labelled,
            encoder=str(self.provenance.get("encoder") or ""),
            drop_empty=True,
        )


# -- reading ---------------------------------------------------------------------------


def load_features(
    path: str | os.PathLike,
    argument: str = "path",
    *,
    column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    separator: str | None = None,
    encoding: str | None = None,
) -> Features:
    """Features from a file, or from a folder of Parquet or numbered .npy files.

    - `.npz`: arrays `features (n, d)`, and optional `labels (n,)`, `class_names`,
      `groups`, `labelled`, `provenance` (JSON text). Features that lie there
      uncompressed and aligned, as `save_features` writes them, are memory-mapped.
    - `.npy`: features, memory-mapped; the rest from its neighbour `NAME.meta.npz`,
      which `save_features` writes, or labels from a second file,
      `FEATURES.npy,LABELS.npy` or a column of a table, `FEATURES.npy,LABELS.csv`
      (.tsv, .parquet, .arrow, .feather, .jsonl, .ndjson).
    - `.safetensors`: tensors of the same names, memory-mapped; class names and
      provenance as JSON in its metadata.
    - `.parquet`: a column of lists of numbers of one length, `column`, or "features",
      or the only such one; or columns of numbers `f0`, `f1`, ..., of which `column` is
      the common beginning. Labels in `label_column`, or "labels" or "label"; `groups`,
      `labelled`; class names and provenance in the file's metadata, also as Hugging
      Face writes them. A folder, with its sub-folders, is one table.
    - a folder of numbered parts, `NAME_0.npy`, `NAME_1.npy` ..., or with one such
      folder `img_emb` or `text_emb` (clip-retrieval, embedding-reader); labels and
      groups from the tables of the same numbers in `metadata`, where there are any.

    Args:
      path: of the file or folder.
      argument: what messages call it.
      column: of the features, where a table has several.
      label_column: of the labels, in a table.
      group_column: of groups whose items stay together in splits, in a table;
        "groups" in Parquet when None.
      separator: of labels in .csv or .tsv: one character or "tab".
      encoding: of labels in .csv, .tsv or JSON Lines; UTF-8 when None.

    Raises:
      ValueError: names `argument` and the file, what was found and what to do.
    """
    text = os.fspath(path)
    beside = labels_file(text)
    more = (text.partition(",")[0], beside or text)
    with reading(argument, text, "a file of features", *more):
        return _load(
            text, argument, column, label_column, group_column, separator, encoding
        )


def _load(
    text: str,
    argument: str,
    column: str | None,
    label_column: str | None,
    group_column: str | None,
    separator: str | None,
    encoding: str | None,
) -> Features:
    file = Path(text)
    beside = labels_file(text)
    _check_options(
        text,
        column=column,
        label_column=label_column,
        group_column=group_column,
        separator=separator,
        encoding=encoding,
    )
    if beside is not None:
        first = text.partition(",")[0]
        file = _existing(Path(first), argument, (".npy",))
        features = formats.read_npy(file, argument)
        if _existing(beside, argument, (".npy", *TABLES)).suffix.lower() == ".npy":
            more: dict[str, Any] = {"labels": formats.read_npy(beside, argument)}
        else:
            texts = TextFormat(separator, encoding)
            more = formats.read_labels(
                beside, argument, label_column, group_column, texts
            )
        if len(more["labels"]) != len(features):
            raise ValueError(
                f"{argument}: {str(beside)!r} has {len(more['labels'])} labels for "
                f"{len(features)} rows of features in {first!r}"
            )
        return Features(features, **more, name=file.stem)
    if npy := _holds_npy_parts(file, argument):
        found = read_npy_parts(file, argument, label_column, group_column)
    elif file.is_dir() or _is_parquet(_existing(file, argument, FORMATS)):
        files = parquet_files(file) if file.is_dir() else [file]
        found = formats.read_parquet(
            files, file, argument, column, label_column, group_column
        )
    else:
        found = _READ[file.suffix.lower()](file, argument)
    if "features" not in found:
        holds = ", ".join(sorted(found)) or "nothing"
        raise ValueError(
            f"{argument}: {text!r} has no array 'features'; it holds {holds}"
        )
    unknown = sorted(set(found) - set(_KNOWN))
    if unknown:
        raise ValueError(
            f"{argument}: {text!r} holds an unknown array {unknown[0]!r}; known are "
            f"{', '.join(_KNOWN)}"
        )
    provenance = _provenance(found.pop("provenance", {}), argument, text)
    if (
        "class_names" in found
        and isinstance(found["class_names"], np.ndarray)
        and found["class_names"].ndim
    ):
        found["class_names"] = found["class_names"].tolist()
    name = data_folder(file.resolve()).name if npy else file.stem
    return Features(**found, name=name, provenance=provenance)


def labels_file(where: str) -> Path | None:
    """The second file of a pair `FEATURES.npy,LABELS.csv`; None where it is no pair."""
    _, _, second = where.partition(",")
    return Path(second) if second and not Path(where).exists() else None


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def parquet_files(folder: Path) -> list[Path]:
    """Parquet files in a folder and its sub-folders."""
    return [p for p in files_below(folder) if _is_parquet(p)]


def _holds_npy_parts(path: Path, argument: str) -> bool:
    """Whether features are numbered .npy files of a folder.

    Raises:
      ValueError: they are, but Parquet files lie beside them.
    """
    if not path.is_dir() or not holds_parts(path):
        return False
    beside = next((p for p in path.iterdir() if _is_parquet(p)), None)
    if beside is not None:
        raise ValueError(
            f"{argument}: folder {str(path)!r} holds .npy files and {beside.name!r}; "
            "name one file, or a pair FEATURES.npy,LABELS.parquet"
        )
    return True


def table_options(where: str) -> tuple[str, ...]:
    """Which options of `load_features` a file or folder has a use for."""
    rows = ("label_column", "group_column")
    beside, path = labels_file(where), Path(where)
    if beside is not None:
        suffix = beside.suffix.lower()
        if suffix not in TABLES:
            return ()
        text = {".csv": 2, ".tsv": 2, ".jsonl": 1, ".ndjson": 1}.get(suffix, 0)
        return (*rows, *("encoding", "separator")[:text])
    if path.is_dir() and holds_parts(path):
        return rows
    return ("column", *rows) if path.is_dir() or _is_parquet(path) else ()


def _check_options(where: str, **options: str | None) -> None:
    """Refuse options that a file has no use for.

    Raises:
      ValueError: names the option.
    """
    usable = table_options(where)
    for name, given in options.items():
        if given is not None and name not in usable:
            lacks = (
                "is no table in text"
                if name in ("separator", "encoding")
                else "has no columns to choose from"
            )
            raise ValueError(
                f"{name}: found {given!r}, but {where!r} {lacks}; leave it out"
            )


def load_task(where: str, argument: str = "path", **options: str | None) -> Task:
    """The task of `load_features`, whose arguments these are.

    Raises:
      ValueError: names the argument and the file, what was found and what to do.
    """
    return features_to_task(load_features(where, argument, **options), where, argument)


def features_to_task(found: Features, where: str, argument: str) -> Task:
    """`found.task()`; errors name the file that it came from."""
    try:
        return found.task()
    except (ValueError, MemoryError) as error:
        name = printable(where.partition(",")[0])
        raise ValueError(f"{argument}: {name}: {one_line(error)}") from None


def load_head(where: str) -> tuple[np.ndarray, np.ndarray]:
    """`(weight, bias)` from `FILE.npz` with keys `weight (K, d)` and optional
    `bias (K,)`, zeros when left out.

    Raises:
      ValueError: for a file or arrays that cannot be a head.
    """
    with reading("head", where, "a head"):
        return _head(where)


def _head(where: str) -> tuple[np.ndarray, np.ndarray]:
    arrays = read_arrays(_existing(Path(where), "head", (".npz",)))
    if "weight" not in arrays:
        raise ValueError(
            f"head: {where!r} has no array 'weight'; it holds "
            f"{', '.join(sorted(arrays)) or 'nothing'}"
        )
    weight = arrays["weight"]
    bias = arrays.get("bias", np.zeros(weight.shape[:1]))
    for name, array, ndim in (("weight", weight, 2), ("bias", bias, 1)):
        if array.dtype.kind not in "fiu" or array.ndim != ndim:
            raise ValueError(
                f"head: {where!r} holds {name} of dtype {array.dtype} and shape "
                f"{array.shape}; real numbers weight (K, d) and bias (K,) are needed"
            )
    return weight, bias


def _existing(path: Path, argument: str, suffixes: Sequence[str]) -> Path:
    if not path.is_file():
        raise ValueError(f"{argument}: there is no file {str(path)!r}")
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{argument}: {str(path)!r} is not {' or '.join(suffixes)}")
    return path


def _provenance(said: Any, argument: str, where: str) -> dict[str, Any]:
    if isinstance(said, dict):
        return said
    try:
        found = read_json(str(said))
        if not isinstance(found, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise ValueError(
            f"{argument}: {where!r} holds a provenance that is no JSON object "
            f"({one_line(error)})"
        ) from None
    return found


# -- writing ---------------------------------------------------------------------------


def save_features(path: str | os.PathLike, features: Features | Task) -> Path:
    """Write features with all that belongs to them to `.npz`, `.npy`, `.safetensors` or
    `.parquet`, atomically.

    `features.features` may be anything with `shape`, `dtype` and slices of rows: it is
    written in blocks, so a memory-mapped array is never held as a whole. An `.npy` has
    room for features only; the rest goes to `NAME.meta.npz` beside it.

    Raises:
      ValueError: for another suffix, or arrays of different lengths.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"path: {str(path)!r} is not {' or '.join(FORMATS)}")
    if not isinstance(features, (Features, Task)):
        raise ValueError(
            f"features: found {type(features).__name__}; give `Features(array, labels, "
            "...)` or a `Task`"
        )
    if isinstance(features, Task):
        labels = np.where(features.labelled, features.labels, 0)
        labelled = None if np.all(features.labelled) else np.asarray(features.labelled)
        unknown = not np.any(features.labelled)
        features = Features(
            features.features,
            None if unknown else labels,
            features.class_names or None,
            features.groups,
            None if unknown else labelled,
            features.name,
            {"encoder": features.encoder} if features.encoder else {},
        )
    values = features.features
    if not hasattr(values, "shape"):
        raise ValueError(
            f"features: found {type(values).__name__}; give an array (n, d)"
        )
    if (
        len(values.shape) != 2
        or not values.shape[1]
        or values.dtype.name not in _DTYPES
    ):
        raise ValueError(
            f"features: found dtype {values.dtype} and shape {values.shape}; (n, d) "
            "real numbers are needed"
        )
    if np.dtype(values.dtype).name == "bfloat16" and path.suffix != ".safetensors":
        raise ValueError(
            f"features: {path.suffix} holds no bfloat16; convert them to float32, or "
            "write .safetensors"
        )
    arrays = {
        name: _plain(np.asarray(v), name)
        for name in ("labels", "groups", "labelled")
        if (v := getattr(features, name)) is not None
    }
    for name, array in arrays.items():
        if array.shape != values.shape[:1]:
            raise ValueError(
                f"{name}: found shape {array.shape} for {values.shape[0]} rows of "
                "features"
            )
    try:
        provenance = json.dumps(finite(features.provenance))
    except TypeError as error:
        raise ValueError(
            f"provenance: it holds what JSON has no word for ({one_line(error)})"
        ) from None
    names = None
    if features.class_names is not None:
        names = _names(check_names(features.class_names, features.name))
    _WRITE[path.suffix](path, formats.Contents(values, arrays, names, provenance))
    return path


def _plain(array: np.ndarray, name: str) -> np.ndarray:
    """An array of numbers or text as every format holds it; groups become numbers."""
    if array.dtype == object:
        if not all(isinstance(item, str) for item in array.flat):
            raise ValueError(f"{name}: found objects; give numbers or strings")
        array = array.astype(str)
    if array.dtype.kind == "S":
        array = np.char.decode(array)
    if name == "labels" and array.dtype == bool:
        array = array.astype(str)  # as class names are
    if name == "groups" and array.dtype.kind not in "iu":
        array = np.unique(array, return_inverse=True)[1].reshape(array.shape)
    if (
        name == "labels"
        and array.dtype.kind == "f"
        and (array == np.round(array)).all()
    ):
        array = array.astype(np.int64)
    if array.dtype.kind not in "biuU":
        raise ValueError(
            f"{name}: found dtype {array.dtype}; give whole numbers or strings"
        )
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _names(class_names: Sequence[Hashable]) -> list:
    """Class names as JSON and NumPy can hold them: whole numbers as they are, all else
    as text.
    """
    whole = all(
        isinstance(name, (int, np.integer)) and not isinstance(name, bool)
        for name in class_names
    )
    found = [int(str(name)) if whole else str(name) for name in class_names]
    texts = [str(name) for name in found]
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise ValueError(
            f"class_names: two of them are {twice!r} as text, which is what files "
            "hold; give them different names"
        )
    if any("\0" in text for text in texts):
        raise ValueError(
            "class_names: a name holds a NUL character, which files do not keep; give "
            "it another name"
        )
    return found
