"""Prepared TFDS data sets as `Examples`, without TensorFlow where they are stored as
array_record or Parquet.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from tta_jax._internal.files import naming_file
from tta_jax._internal.serialization import DAMAGE
from tta_jax._internal.text import one_line
from tta_jax.data.examples import Examples, with_classes
from tta_jax.data.records import Columns, encoded_groups, named_by
from tta_jax.data.registry import TASKS, data_home

_BLOCK = 256  # records read together
_INSTALL = "install it with: pip install 'tta-jax[data]'"


def library(*more: str) -> Any:
    """TensorFlow Datasets.

    Raises:
      ValueError: it, what it needs, or one of `more` packages is not installed.
    """
    # TFDS imports importlib_resources late, and then reports something else.
    for name in ("tensorflow_datasets", "importlib_resources", *more):
        if find_spec(name) is None:
            raise ValueError(
                f"data: TFDS data sets need the package {name}, which is not "
                f"installed; {_INSTALL}"
            )
    import tensorflow_datasets as tfds

    return tfds


_OWN_FEATURES = "tensorflow_datasets.core.features."
_ONE_AT_A_TIME = threading.Lock()


@contextlib.contextmanager
def _own_features_only() -> Iterator[None]:
    """Let files of this thread name TFDS' own kinds of features only.

    TFDS imports whatever module a `features.json` names, which runs it.
    """
    from tensorflow_datasets.core.features import feature

    connector, mine = feature.FeatureConnector, threading.get_ident()
    original = connector.__dict__["cls_from_name"]

    def cls_from_name(cls, python_class_name):
        parts = str(python_class_name).removeprefix(_OWN_FEATURES).split(".")
        own = str(python_class_name).startswith(_OWN_FEATURES)
        if threading.get_ident() == mine and not (
            own and all(part.isidentifier() for part in parts)
        ):
            raise ValueError(
                f"its features.json names {python_class_name!r}, which is no feature "
                "of TFDS; nothing of it was imported"
            )
        return original.__func__(cls, python_class_name)

    with _ONE_AT_A_TIME:
        setattr(connector, "cls_from_name", classmethod(cls_from_name))  # noqa: B010
        try:
            yield
        finally:
            setattr(connector, "cls_from_name", original)  # noqa: B010


@naming_file("data", "a prepared TFDS data set")
def open_tfds(
    name: str | os.PathLike,
    split: str | None = None,
    data_dir: str | os.PathLike | None = None,
    *,
    column: str | None = None,
    label_column: str | None = None,
    id_column: str | None = None,
    group_column: str | None = None,
) -> Examples:
    """A prepared TFDS data set; items are read when they are needed, pictures stay
    encoded.

    Of an array_record only what is asked for is read; a split in Parquet is held in
    memory, as TFDS does it; a tfrecord needs TensorFlow and is read front to back, so
    that a step backwards starts anew. The labels of a split are read at once, in a pass
    over its records that decodes no picture.

    Args:
      name: such as `mnist`, `glue/sst2` or `cats_vs_dogs:4.0.1`; or the folder of a
        prepared one, which holds dataset_info.json.
      split: with TFDS' slices and sums: `train[:500]`, `test[10%:20%]`, `train+test`;
        may be left out where there is only one.
      data_dir: where data sets are prepared; `$TFDS_DATA_DIR` or
        `~/tensorflow_datasets` when left out.
      column: the feature that is the input: a picture, a text or an array of fixed
        shape; found where the data set says so (`supervised_keys`), or where only one
        feature is a picture or a text.
      label_column: the feature with the classes; found likewise. Without one the items
        are unlabelled, and so are those whose label is -1, which stands for "unknown"
        in TFDS.
      id_column: a text or number that names items in messages; "id" when left out,
        where that is a text.
      group_column: a text or number; items that share it stay together in splits.

    Raises:
      ValueError: one line that names the argument, what was found and what to do.
    """
    tfds, text = library(), os.fspath(name)
    folder = Path(text).expanduser()
    asked = Columns(column, label_column, id_column, group_column)
    if folder.is_dir():
        return open_folder(folder, split, asked)
    from tensorflow_datasets.core import read_only_builder

    home = data_home(data_dir)
    try:
        with _own_features_only():
            builder = read_only_builder.builder_from_files(text, data_dir=str(home))
    except tfds.core.registered.DatasetNotFoundError:
        raise ValueError(_not_found(tfds, text, home)) from None
    except DAMAGE as error:
        raise ValueError(
            f"data: cannot open the TFDS data set {text!r} ({one_line(error)})"
        ) from None
    return _examples(builder, split, asked)


@naming_file("data", "a prepared TFDS data set")
def open_folder(
    folder: Path,
    split: str | None = None,
    columns: Columns = Columns(),  # noqa: B008 (it is immutable)
) -> Examples:
    """The data set that was prepared in `folder`; see `open_tfds`."""
    tfds = library()
    try:
        with _own_features_only():
            builder = tfds.builder_from_directory(str(folder))
    except DAMAGE as error:
        raise ValueError(
            f"data: {str(folder)!r} holds no prepared TFDS data set, or a damaged one "
            f"({one_line(error)})"
        ) from None
    return _examples(builder, split, columns)


def _not_found(tfds: Any, text: str, home: Path) -> str:
    name = text.split("/")[0].split(":")[0]
    known = tfds.list_builders(with_community_datasets=False)
    folders = [p.name for p in (home / name).glob("*") if p.is_dir()] if name else []
    inside = sorted(
        p for p in folders if not p.startswith(".") and ".incomplete" not in p
    )
    if inside:
        return (
            f"data: {text!r} is not prepared in {str(home)!r}, which has {name} with "
            f"{', '.join(inside)}; name one of these, as in NAME/CONFIG or NAME:VERSION"
        )
    if name in known:
        command = (
            f"tfds.builder({text!r}, data_dir={str(home)!r}, "
            "file_format='array_record').download_and_prepare()"
        )
        return (
            f"data: {text!r} is not prepared in {str(home)!r}; prepare it with: "
            f'python -c "import tensorflow_datasets as tfds; {command}"'
        )
    near = difflib.get_close_matches(name, [*TASKS, *known], 1)
    hint = (
        f"did you mean {near[0]!r}?"
        if near
        else "give a path, a task (tta-jax data list) or a TFDS data set"
    )
    return f"data: there is no file, task or TFDS data set {text!r}; {hint}"


def _examples(builder: Any, split: str | None, asked: Columns) -> Examples:
    info, split = builder.info, _split(builder, split)
    features = info.features
    column, modality, label_column = _columns(info, asked.column, asked.label_column)
    records = _records(builder, split)
    labels, names = (
        (None, None)
        if label_column is None
        else _labels(records, features, label_column, _where(builder))
    )
    provenance = {
        "kind": "TFDS",
        "data_set": info.full_name,
        "column": column,
        "label_column": label_column,
        "licence": one_line(info.redistribution_info.license)
        if info.redistribution_info.license
        else "not stated",
        "homepage": info.homepage,
        "citation": info.citation,
    }
    metadata = dict(info.metadata or {})
    provenance |= {
        name: metadata[name] for name in ("dropped", "copies") if metadata.get(name)
    }

    def place(i):
        return f"item {i} of {split}"

    describe: Callable[[int], str] = place
    if asked.id_column is not None:
        ids = _plain_values(records, info, asked.id_column, "id_column")
        describe = named_by(place, ids, info.full_name)
    elif "id" in features and _modality(features["id"]) == "text":

        def with_id(i):
            return f"{place(i)} ({_text(records[i]['id'])})"

        describe = with_id

    groups = None
    if asked.group_column is not None:
        groups = encoded_groups(
            _plain_values(records, info, asked.group_column, "group_column"),
            asked.group_column,
            info.full_name,
            place,
        )
    turn = {"image": bytes, "text": _text, "array": np.asarray}[modality]
    found = Examples(
        _Items(records, column, turn),
        modality,
        labels,
        names,
        builder.name,
        split,
        describe,
        provenance,
        groups=groups,
    )
    return with_classes(found, _where(builder))


def _where(builder: Any) -> str:
    return f"{builder.info.full_name} in {str(builder.data_dir)!r}"


def _split(builder: Any, split: str | None) -> str:
    splits: dict[str, Any] = builder.info.splits
    where = f"{builder.info.full_name} in {str(builder.data_dir)!r}"
    names = (
        ", ".join(f"{name} ({found.num_examples})" for name, found in splits.items())
        or "none"
    )
    if split is None:
        if len(splits) != 1:
            raise ValueError(
                f"split: name a split of {builder.info.full_name}; it has {names}"
            )
        split = next(iter(splits))
    try:
        count = splits[split].num_examples
    except DAMAGE:
        raise ValueError(
            f"split: {where} has no {split!r}; it has {names}, and "
            "parts of these, such as 'train[:50%]'"
        ) from None
    if count <= 0:
        raise ValueError(f"split: {split!r} of {where} holds no item; it has {names}")
    return split


# -- features --------------------------------------------------------------------------


def _modality(feature: Any) -> str:
    """What an encoder would see in a feature: "image", "text", "array", or "" for
    nothing.
    """
    from tensorflow_datasets import features

    if isinstance(feature, features.Image):
        return "image"
    if isinstance(feature, features.Text):
        return "text"
    return (
        "array"
        if type(feature) is features.Tensor
        and feature.shape
        and _all_numbers(feature, "fiub")
        else ""
    )


def _is_class(feature: Any) -> bool:
    from tensorflow_datasets import features

    return (
        isinstance(feature, features.Tensor)
        and feature.shape == ()
        and _all_numbers(feature, "iub")
    )


def _all_numbers(tensor: Any, kinds: str) -> bool:
    """Whether it holds numbers of these kinds, always as many."""
    return None not in tensor.shape and np.dtype(tensor.np_dtype).kind in kinds


def _columns(
    info: Any, column: str | None, label_column: str | None
) -> tuple[str, str, str | None]:
    """The input, its modality and the label: as asked for, as the data set says, or as
    nothing else could be meant.
    """
    features, keys = info.features, info.supervised_keys or ()
    has = ", ".join(
        f"{name} ({type(feature).__name__})"
        for name, feature in sorted(features.items())
    )
    says = (
        keys
        if len(keys) == 2
        and all(isinstance(key, str) and key in features for key in keys)
        else (None, None)
    )
    for argument, name in (("column", column), ("label_column", label_column)):
        if name is not None and name not in features:
            raise ValueError(
                f"{argument}: {info.full_name} has no feature {name!r}; it has {has}"
            )
    if column is None:
        pictures = [
            name for name, feature in features.items() if _modality(feature) == "image"
        ]
        texts = [
            name for name, feature in features.items() if _modality(feature) == "text"
        ]
        column = (
            says[0]
            if says[0] and _modality(features[says[0]])
            else _only(pictures or texts)
        )
        if column is None:
            raise ValueError(
                f"column: name the feature of {info.full_name} that is the input; it "
                f"has {has}"
            )
    elif not _modality(features[column]):
        raise ValueError(
            f"column: feature {column!r} of {info.full_name} is no picture, text or "
            f"array; it has {has}"
        )
    if label_column is None:
        classes = [
            name
            for name, feature in features.items()
            if _is_class(feature) and hasattr(feature, "names")
        ]
        label_column = (
            says[1]
            if says[1] and says[1] != column and _is_class(features[says[1]])
            else _only(classes)
        )
        if label_column is None and classes:
            raise ValueError(
                f"label_column: name the feature of {info.full_name} with the classes; "
                f"it has {has}"
            )
    elif (
        not _is_class(features[label_column])
        and _modality(features[label_column]) != "text"
    ):
        raise ValueError(
            f"label_column: feature {label_column!r} of {info.full_name} holds no "
            f"classes; it has {has}"
        )
    return column, _modality(features[column]), label_column


def _only(names: list[str]) -> str | None:
    return names[0] if len(names) == 1 else None


def _labels(
    records: Sequence[Any], features: Any, column: str, name: str
) -> tuple[list, tuple[str, ...] | None]:
    """Labels of all records, -1 as a class or a blank text as None, and
    class names where there are any.
    """
    values = _values(records, column, name)
    if _modality(features[column]) == "text":
        texts = [_text(value) for value in values]
        return [text if text.strip() else None for text in texts], None
    labels, names = (
        [int(value) for value in values],
        getattr(features[column], "names", None),
    )
    if not names:
        return labels, None
    return [None if label == -1 else label for label in labels], tuple(names)


def _plain_values(
    records: Sequence[Any], info: Any, column: str, argument: str
) -> list[Any]:
    """A feature of texts or whole numbers of all records.

    Raises:
      ValueError: there is no such feature, or it is something else.
    """
    features = info.features
    if column not in features:
        raise ValueError(
            f"{argument}: {info.full_name} has no feature {column!r}; it has "
            f"{', '.join(sorted(features))}"
        )
    values = _values(records, column, info.full_name)
    if _modality(features[column]) == "text":
        return [_text(value) for value in values]
    if not _is_class(features[column]):
        raise ValueError(
            f"{argument}: feature {column!r} of {info.full_name} is "
            f"{type(features[column]).__name__}; a text or a whole number is needed"
        )
    return [int(value) for value in values]


def _values(records: Sequence[Any], column: str, name: str) -> list[Any]:
    try:
        return [record[column] for record in _each(records)]
    except DAMAGE as error:
        raise ValueError(
            f"data: cannot read {name} ({one_line(error)}); prepare it anew"
        ) from None


# -- records ---------------------------------------------------------------------------


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class _Items(Sequence):
    """One feature of records."""

    def __init__(self, records: Any, column: str, turn: Callable[[Any], Any]):
        self._records, self._column, self._turn = records, column, turn

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(i)
        try:
            return self._turn(self._records[int(i)][self._column])
        except DAMAGE as error:
            raise ValueError(one_line(error)) from None

    def __getitems__(self, places: Sequence[int]) -> list[Any]:
        """Several at once, which is quicker where records are small."""
        try:
            if hasattr(self._records, "__getitems__"):
                return [
                    self._turn(record[self._column])
                    for record in self._records.__getitems__(list(places))
                ]
        except DAMAGE as error:
            raise ValueError(one_line(error)) from None
        return [self[i] for i in places]


class _FrontToBack(Sequence):
    """Records of a tfrecord, through TensorFlow. Going backwards starts anew, but for
    the latest ones: threads are not in step.
    """

    _HELD = 64

    def __init__(self, start: Callable[[], Iterator[Any]], count: int):
        self._start, self._count = start, count
        self._lock = threading.Lock()
        self._stream, self._next = start(), 0
        self._latest: deque[Any] = deque(maxlen=self._HELD)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i) -> Any:
        if not 0 <= i < self._count:
            raise IndexError(i)
        with self._lock:
            if i < self._next - len(self._latest):
                self._stream, self._next = self._start(), 0
                self._latest.clear()
            while self._next <= i:
                self._latest.append(next(self._stream))
                self._next += 1
            return self._latest[i - self._next]


def _each(records: Any) -> Iterator[Any]:
    """All records in order; in blocks where that is quicker (five times, for small
    records in an array_record).
    """
    if not hasattr(records, "__getitems__"):
        yield from records
        return
    for start in range(0, len(records), _BLOCK):
        yield from records.__getitems__(range(start, min(start + _BLOCK, len(records))))


def _records(builder: Any, split: str) -> Sequence[Any]:
    """Dictionaries of features, random access; several threads may read."""
    tfds, info = library(), builder.info
    features = info.features.items()
    decoders = {
        name: tfds.decode.SkipDecoding()
        for name, feature in features
        if _modality(feature) == "image"
    }
    stored = info.available_file_formats()
    if stored & tfds.core.FileFormat.with_random_access():
        try:
            return builder.as_data_source(split, decoders=decoders)
        except ImportError as error:
            raise ValueError(
                f"data: {info.full_name} needs a package ({one_line(error)}); "
                f"{_INSTALL}"
            ) from None
        except DAMAGE as error:
            raise ValueError(
                f"data: cannot read {_where(builder)} ({one_line(error)}); prepare it "
                "anew"
            ) from None
    if find_spec("tensorflow") is None:
        format = ", ".join(found.value for found in stored) or "an unknown format"
        raise ValueError(
            f"data: {info.full_name} is prepared as {format}, which only TensorFlow "
            "reads; install tensorflow, or, where it is "
            f"installed: tfds convert_format --dataset_version_dir={builder.data_dir} "
            "--out_file_format=array_record"
        )

    def start():
        return iter(
            builder.as_dataset(
                split=split, decoders=decoders, shuffle_files=False
            ).as_numpy_iterator()
        )

    return _FrontToBack(start, info.splits[split].num_examples)
