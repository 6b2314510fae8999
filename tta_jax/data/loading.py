"""Raw data by name or path: a task, a TFDS data set, a folder of class sub-folders of
pictures, a table with texts or pictures.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tta_jax._internal.files import naming_file, reading
from tta_jax._internal.text import one_line
from tta_jax._internal.warning import warn_of_data
from tta_jax.data.examples import Examples, Taken
from tta_jax.data.installed import require_package
from tta_jax.data.io.formats import TABLES, class_label, default_label
from tta_jax.data.prepare import open_task
from tta_jax.data.registry import TASKS

PICTURES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jfif",
    ".gif",
    ".avif",
    ".bmp",
    ".webp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
)


@naming_file("data", "data that can be read")
def open_data(
    where: str | os.PathLike,
    split: str | None = None,
    *,
    column: str | None = None,
    label_column: str | None = None,
    data_dir: str | os.PathLike | None = None,
) -> Examples:
    """Raw data by name or path; items are read when they are needed.

    Args:
      where: a prepared task (`tta-jax data list`), a TFDS data set by name or by the
        folder it was prepared in, a folder with one sub-folder of pictures for each
        class, or a .csv, .tsv or .parquet file.
      split: of a task or TFDS data set, with TFDS' slices (`train[:500]`); of a folder,
        the sub-folder that holds the classes; of a table, a value of its column
        "split".
      column: of the texts or pictures; "text" or "image" when left out.
      label_column: "label" when left out, and then it may be absent.
      data_dir: where TFDS data sets are prepared.

    Raises:
      ValueError: names the argument, what was found and what to do.
    """
    text = os.fspath(where)
    path = Path(text).expanduser()
    if not text:
        raise ValueError(
            "data: found an empty name; give a task, a data set, a folder or a file"
        )
    if text.startswith((".", "/", "~")) and not path.exists():
        raise ValueError(f"data: there is no file or folder {text!r}")
    if path.suffix in TABLES:
        if not path.is_file():
            raise ValueError(f"data: there is no file {text!r}")
        return _table(path, split, column, label_column)
    if path.is_dir() and not any(
        (path / name).exists() for name in ("dataset_info.json", "features.json")
    ):
        if column or label_column:
            raise ValueError(
                f"{'column' if column else 'label_column'}: {text!r} is a folder of "
                "pictures, which has no columns"
            )
        return _folder(path, split)
    if text in TASKS:
        return open_task(text, split, data_dir)
    if path.is_file():
        raise ValueError(
            f"data: {text!r} is not {' or '.join(TABLES)}, nor a folder of pictures; "
            "features in files need no encoder"
        )
    from tta_jax.data.tfds import open_tfds

    return open_tfds(text, split, data_dir, column=column, label_column=label_column)


# -- folders of pictures ---------------------------------------------------------------


def _inside(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def _shown(folder: Path) -> list[Path]:
    """Files at any depth, none of them hidden or in a hidden folder, links followed.

    A link that leads nowhere counts as a file, so that it is named where it cannot be
    read; a folder inside itself is read once.
    """
    found, seen = [], {folder.resolve()}
    for place, folders, files in os.walk(folder, followlinks=True):
        kept = []
        for name in sorted(folders):
            inside = Path(place, name).resolve()
            if not name.startswith(".") and inside not in seen:
                seen.add(inside)
                kept.append(name)
        folders[:] = kept
        found += [Path(place, name) for name in files if not name.startswith(".")]
    return sorted(p for p in found if p.is_file() or p.is_symlink())


def _leads_nowhere(path: Path) -> bool:
    """Whether it is a link to what is not there (not fetched yet, for example)."""
    return path.is_symlink() and not path.exists()


class _Files(Sequence):
    """The bytes of files."""

    def __init__(self, paths: list[Path]):
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i):
        return self._paths[i].read_bytes()


def _folder(root: Path, split: str | None) -> Examples:
    folder = root
    if split is not None:
        folder = root / split
        if not folder.is_dir() or split not in {p.name for p in _inside(root)}:
            names = ", ".join(p.name for p in _inside(root) if p.is_dir()) or "none"
            raise ValueError(
                f"split: folder {str(root)!r} has no sub-folder {split!r}; it has "
                f"{names}"
            )
    classes = [p for p in _inside(folder) if p.is_dir()]
    loose = [
        p
        for p in _inside(folder)
        if (p.is_file() or _leads_nowhere(p)) and p.suffix.lower() in PICTURES
    ]
    if not classes:
        if not loose:
            hint = (
                "; for the task of that name, call from another folder"
                if str(root) in TASKS
                else ""
            )
            raise ValueError(
                f"data: folder {str(folder)!r} holds no pictures "
                f"({', '.join(PICTURES)}); one sub-folder a class is needed{hint}"
            )
        return _of_files(loose, None, None, root, split, 0)
    if loose:
        raise ValueError(
            f"data: folder {str(folder)!r} holds pictures beside its class folders, "
            f"e.g. {loose[0].name!r}; move them into a class"
        )
    if split is None and all(
        _inside(p) and all(q.is_dir() for q in _inside(p)) for p in classes
    ):
        names = ", ".join(p.name for p in classes)
        raise ValueError(
            f"split: the sub-folders of {str(root)!r} hold folders, not pictures; name "
            f"the split: {names}"
        )
    shown = [_shown(p) for p in classes]
    files = [[p for p in found if p.suffix.lower() in PICTURES] for found in shown]
    if broken := [p for found in files for p in found if _leads_nowhere(p)]:
        warn_of_data(
            f"data: {len(broken)} pictures of {str(folder)!r} are links that lead "
            f"nowhere, e.g. {str(broken[0].relative_to(root))!r}; fetch them, or they "
            "cannot be read"
        )
    ignored = sum(map(len, shown)) - sum(map(len, files))
    labels = np.repeat(np.arange(len(classes)), [len(found) for found in files])
    return _of_files(
        [p for found in files for p in found],
        labels,
        tuple(p.name for p in classes),
        root,
        split,
        ignored,
    )


def _of_files(
    files: list[Path],
    labels: np.ndarray | None,
    names: tuple[str, ...] | None,
    root: Path,
    split: str | None,
    ignored: int,
) -> Examples:
    def describe(i):
        return str(files[i].relative_to(root))

    provenance = {"kind": "folder of pictures", "files_that_are_no_pictures": ignored}
    return Examples(
        _Files(files),
        "image",
        labels,
        names,
        root.resolve().name,
        split,
        describe,
        provenance,
    )


# -- tables ----------------------------------------------------------------------------


class _Column(Sequence):
    """A column of Parquet files or of a mapped Arrow file, one group of rows in memory
    at a time.
    """

    def __init__(self, groups: list[tuple[int, Any]]):
        """`groups`: number of rows, and what reads them as a list."""
        self._ends = np.cumsum([rows for rows, _ in groups])
        self._read = [read for _, read in groups]
        self._held: tuple[int, list] = (-1, [])
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(i)
        group = int(np.searchsorted(self._ends, i, "right"))
        with self._lock:
            if self._held[0] != group:
                self._held = (group, self._read[group]())
            return self._held[1][i - (int(self._ends[group - 1]) if group else 0)]


def _table(
    path: Path, split: str | None, column: str | None, label_column: str | None
) -> Examples:
    require_package("pyarrow", "data", f"{str(path)!r} needs")
    import pyarrow as pa

    try:
        names, schema, groups = (
            _parquet_groups(path) if path.suffix == ".parquet" else _csv_groups(path)
        )
        if len(set(names)) < len(names):
            raise ValueError(
                f"column: {str(path)!r} has two columns of one name; rename one"
            )

        def known(name):
            return f"{str(path)!r} has no column {name!r}; it has {', '.join(names)}"

        if column is None:
            column = next((name for name in ("text", "image") if name in names), None)
            if column is None:
                raise ValueError(f"column: {known('text')}; name one")
        for argument, name in (
            ("column", column),
            ("label_column", label_column),
            ("split", "split" if split else None),
        ):
            if name is not None and name not in names:
                raise ValueError(f"{argument}: {known(name)}")
        if label_column is None:
            label_column = default_label(names, ("label",), column, f"{str(path)!r}")
        rows = np.arange(sum(rows for rows, _ in groups))
        if split is not None:
            values = np.array(_whole(groups, "split"), dtype=object)
            rows = np.flatnonzero(values == split)
            if not rows.size:
                raise ValueError(
                    f"split: {str(path)!r} has no row with split {split!r}; it has "
                    f"{', '.join(sorted(set(map(str, values))))}"
                )
        kind = _plain(schema.field(column).type)
        modality = (
            "text"
            if pa.types.is_string(kind) or pa.types.is_large_string(kind)
            else "image"
        )
        if modality == "image" and not (
            pa.types.is_struct(kind)
            or pa.types.is_binary(kind)
            or pa.types.is_large_binary(kind)
        ):
            raise ValueError(
                f"column: {str(path)!r} has {kind} in column {column!r}; texts or "
                "encoded pictures are needed"
            )
        chosen, turn = column, _as_text if modality == "text" else _as_bytes
        items = _Column(
            [
                (n, lambda read=read: [turn(v) for v in read(chosen)])
                for n, read in groups
            ]
        )
        labels = class_names = None
        if label_column is not None:
            found = _whole(groups, label_column)
            labels, class_names = _labels(
                [found[i] for i in rows], rows, label_column, schema, path
            )
    except (pa.ArrowException, OSError) as error:
        hint = "; save it as UTF-8" if "UTF8" in str(error) else ""
        raise ValueError(
            f"data: {str(path)!r} cannot be read as {path.suffix[1:]} "
            f"({one_line(error)}){hint}"
        ) from None
    provenance = {"kind": "table", "column": column, "label_column": label_column}
    items = items if split is None else Taken(items, rows)
    return Examples(
        items,
        modality,
        labels,
        class_names,
        path.stem,
        split,
        lambda i: f"row {rows[i]}",
        provenance,
    )


def _plain(kind: Any) -> Any:
    """The type of the values of a column, be it stored as a dictionary of them or
    not.
    """
    import pyarrow as pa

    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _parquet_groups(path: Path):
    import pyarrow.parquet as pq

    stored = pq.ParquetFile(path, memory_map=True)
    lock = threading.Lock()  # one file is not read by several threads

    def reader(group: int):
        def read(name: str) -> list:
            with lock, reading("data", path, "a Parquet file"):
                return stored.read_row_group(group, [name]).column(0).to_pylist()

        return read

    groups = [
        (stored.metadata.row_group(g).num_rows, reader(g))
        for g in range(stored.num_row_groups)
    ]
    return stored.schema_arrow.names, stored.schema_arrow, groups


def _csv_groups(path: Path):
    """Batches of rows of a .csv, which is turned into a temporary Arrow file, so that
    it need not fit into memory.
    """
    import pyarrow as pa

    try:
        return _mapped_csv(path, 1 << 24)
    except pa.ArrowInvalid as error:
        if "straddl" not in str(error):
            raise
        return _mapped_csv(path, 1 << 30)  # a text longer than a block


def _mapped_csv(path: Path, block: int):
    import pyarrow as pa
    from pyarrow import csv

    options = {
        "read_options": csv.ReadOptions(block_size=block),
        "parse_options": csv.ParseOptions(
            delimiter="\t" if path.suffix == ".tsv" else ",", newlines_in_values=True
        ),
    }
    with csv.open_csv(path, **options) as stream:
        names = stream.schema.names
    # All columns are texts: neither is "NA" missing, nor "2016" a number.
    convert = csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
    )
    with tempfile.NamedTemporaryFile(suffix=".arrow") as buffer:
        with csv.open_csv(path, **options, convert_options=convert) as stream:
            schema = stream.schema
            with pa.ipc.new_file(buffer, schema) as sink:
                for batch in stream:
                    sink.write_batch(batch)
        buffer.flush()
        stored = pa.ipc.open_file(
            pa.memory_map(buffer.name)
        )  # stays mapped when its name is gone
    batches = [stored.get_batch(k) for k in range(stored.num_record_batches)]
    groups = [
        (
            b.num_rows,
            lambda name, b=b: b.column(schema.get_field_index(name)).to_pylist(),
        )
        for b in batches
    ]
    return schema.names, schema, groups


def _whole(groups: list, name: str) -> list:
    return [value for _, read in groups for value in read(name)]


def _as_text(value: Any) -> str:
    return "" if value is None else value


def _as_bytes(value: Any) -> bytes:
    """Encoded pictures are bytes, or a dictionary that holds them, as Hugging Face data
    sets write them.
    """
    found = value.get("bytes") if isinstance(value, dict) else value
    return b"" if found is None else found


def _labels(
    values: list, rows: np.ndarray, column: str, schema: Any, path: Path
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class indices of labels, which are the values of some rows, and class names:
    texts, whole numbers or booleans.
    """
    import pyarrow as pa

    kind = _plain(schema.field(column).type)

    def whole(v):
        return isinstance(v, float) and v.is_integer()

    if pa.types.is_floating(kind) and all(v is None or whole(v) for v in values):
        values = [v if v is None else int(v) for v in values]
    elif not any(
        test(kind)
        for test in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_integer,
            pa.types.is_boolean,
        )
    ):
        raise ValueError(
            f"label_column: {str(path)!r} has {kind} in column {column!r}; texts or "
            "whole numbers are needed"
        )
    missing = next(
        (i for i, value in enumerate(values) if value is None or value == ""), None
    )
    if missing is not None:
        raise ValueError(
            f"label_column: {str(path)!r} has no label in row {rows[missing]}, column "
            f"{column!r}; fill or remove such rows"
        )
    names = class_label(schema.metadata, column)
    if names is not None:
        return np.array(values), tuple(names)
    distinct = set(values)
    by_number = all(
        isinstance(v, str) and v.isascii() and v.isdigit() and str(int(v)) == v
        for v in distinct
    )
    order = sorted(distinct, key=int) if by_number else sorted(distinct)
    position = {value: i for i, value in enumerate(order)}
    return np.array([position[value] for value in values], np.int64), tuple(
        str(value) for value in order
    )
