"""Raw data in tables: files, shards in a folder, folders that `datasets` wrote."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tta_jax._internal.serialization import DAMAGE
from tta_jax._internal.text import one_line, read_json
from tta_jax.data.examples import Examples, Taken, with_classes
from tta_jax.data.io.tables import (
    Table,
    TextFormat,
    class_label,
    default_label,
    is_binary,
    is_text,
    labels_of,
    open_table,
    table_files,
)
from tta_jax.data.records import Columns, encoded_groups, named_by
from tta_jax.tasks.validation import drop_empty_classes

# What splits are usually called: files of two such names are no shards of one table.
_SPLITS = ("train", "training", "test", "testing", "validation", "valid", "val", "dev")
_SHARD = re.compile(r"([-_.]?[0-9]+(-of-[0-9]+)?)$")  # what a shard's name ends with


def table_examples(
    table: Table, name: str, split: str | None, columns: Columns
) -> Examples:
    """The rows of a table as items.

    Args:
      table: as `open_table` gives it.
      name: of the data.
      split: a value of the column "split", or None for all rows.
      columns: "text" or "image" is the item and "label" the label where they name none.

    Raises:
      ValueError: names the argument, what was found and what to do.
    """
    column = columns.column or next(
        (found for found in ("text", "image") if found in table.names), None
    )
    if column is None:
        raise ValueError(
            f"column: {table.where} has neither 'text' nor 'image'; it has "
            f"{', '.join(table.names)}{table.hint}; name one (--column)"
        )
    for argument, given in (
        *columns._replace(column=column)._asdict().items(),
        ("split", None if split is None else "split"),
    ):
        if given is not None:
            table.check_column(given, argument)
    label = columns.label_column or default_label(
        columns.others(table.names), ("label",), column, table.where
    )
    if label is not None:
        table.check_column(label, "label_column")  # the default may be of mixed kinds
    fields = columns._replace(column=column, label_column=label)
    rows = np.arange(len(table))
    if split is not None:
        values = np.array(table.whole("split"), dtype=object)
        rows = np.flatnonzero(values == split)
        if not rows.size:
            raise ValueError(
                f"split: {table.where} has no row with split {split!r}; it has "
                f"{', '.join(sorted(set(map(str, values))))}"
            )

    def taken(field: str | None) -> list | None:
        if field is None:
            return None
        values = table.whole(field)
        return values if split is None else [values[i] for i in rows]

    def place(i: int) -> str:
        return table.place(int(rows[i]))

    modality, turn = _reader(table, column)
    items = table.items(column, turn)
    groups = taken(columns.group_column)
    ids = taken(columns.id_column)
    found = Examples(
        items if split is None else Taken(items, rows),
        modality,
        None if label is None else labels_of(table, label, taken(label)),
        None if label is None else _names(table, label),
        name,
        split,
        named_by(place, ids, table.where),
        {
            "kind": "table",
            "files": len(table.parts),
            **fields._asdict(),
        },
        groups=None
        if groups is None
        else encoded_groups(groups, str(columns.group_column), table.where, place),
    )
    return _without_empty_classes(with_classes(found, table.where))


def _names(table: Table, column: str) -> tuple[str, ...] | None:
    names = class_label(table.schema.metadata, column)
    return None if names is None or is_text(table.kind(column)) else tuple(names)


def _without_empty_classes(examples: Examples) -> Examples:
    """Examples without the classes that a filtered data set names and does not hold."""
    if examples.labels is None or examples.class_names is None:
        return examples
    known = (
        np.ones(len(examples), bool) if examples.labelled is None else examples.labelled
    )
    labels, names = drop_empty_classes(
        examples.labels, known, examples.class_names, examples.name
    )
    return dataclasses.replace(
        examples, labels=labels, class_names=tuple(map(str, names))
    )


def _reader(table: Table, column: str) -> tuple[str, Any]:
    """What items of a column are, and what makes an item of a value."""
    import pyarrow as pa

    kind = table.kind(column)
    if is_text(kind):
        return "text", lambda value: "" if value is None else value
    if is_binary(kind) or pa.types.is_struct(kind):
        return "image", _encoded_picture
    raise ValueError(
        f"column: {table.where} has {kind} in column {column!r}; texts or encoded "
        "pictures are needed"
    )


def _encoded_picture(value: Any) -> bytes | Path:
    """Encoded pictures are bytes, or a dictionary that holds them or says where they
    lie, as Hugging Face data sets write them.
    """
    if not isinstance(value, dict):
        return value or b""
    path = value.get("path")
    if not value.get("bytes") and path and Path(path).is_absolute():
        return Path(path)
    return value.get("bytes") or b""


# -- files and folders -----------------------------------------------------------------


def open_files(
    files: Sequence[Path],
    where: Path | str,
    name: str,
    split: str | None,
    columns: Columns,
    texts: TextFormat,
) -> Examples:
    """Items of a table in one or several files; see `table_examples`."""
    return table_examples(open_table(files, where, texts=texts), name, split, columns)


def open_folder(
    folder: Path, split: str | None, columns: Columns, texts: TextFormat
) -> Examples:
    """Items of the shards in a folder and its sub-folders, as one table.

    Args:
      folder: of files of one format.
      split: a sub-folder, what the names of its shards begin with (`train` of
        `train-00000-of-00002.parquet`), or a value of the column "split".
      columns, texts: as of `table_examples` and `open_table`.

    Raises:
      ValueError: names the argument, what was found and what to do.
    """
    files = table_files(folder)
    by_split: dict[str, list[Path]] = {}
    for file in files:
        inside = file.relative_to(folder)
        for name in {*inside.parts[:-1], _SHARD.sub("", inside.stem)}:
            by_split.setdefault(name, []).append(file)
    usual = [name for name in by_split if name.lower() in _SPLITS]
    name = folder.resolve().name
    if split is None and len(usual) > 1:
        raise ValueError(
            f"split: {str(folder)!r} holds files of several splits; name one: "
            f"{', '.join(sorted(usual))}"
        )
    if split is None or split not in by_split:
        table = open_table(files, folder, texts=texts)
        if split is not None and "split" not in table.names:
            raise ValueError(
                f"split: {str(folder)!r} has no files of {split!r} and no column "
                f"'split'; it has {', '.join(sorted(usual or by_split))}"
            )
        return table_examples(table, name, split, columns)
    found = open_files(by_split[split], folder, name, None, columns, texts)
    return dataclasses.replace(found, split=split)


# -- folders that `datasets` wrote -----------------------------------------------------


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of Hugging Face's `datasets` wrote a folder, or part of
    it.
    """
    return any((folder / name).exists() for name in ("state.json", "dataset_dict.json"))


def open_saved(
    folder: Path, split: str | None, columns: Columns, texts: TextFormat
) -> Examples:
    """Items of a folder that `save_to_disk` wrote, read without `datasets`.

    Args:
      folder: of a `Dataset`, or of a `DatasetDict`.
      split: a member of the `DatasetDict`, or the split of the `Dataset`, or a value of
        its column "split".
      columns, texts: as of `table_examples` and `open_table`.

    Raises:
      ValueError: names the argument, what was found and what to do.
    """
    name, part = folder.resolve().name, folder
    if (folder / "dataset_dict.json").exists():
        splits = _json(folder / "dataset_dict.json", "splits", list)
        if split is None and len(splits) > 1:
            raise ValueError(
                f"split: {str(folder)!r} holds several splits; name one: "
                f"{', '.join(map(str, splits))}"
            )
        split = splits[0] if split is None and splits else split
        if split not in splits:
            raise ValueError(
                f"split: {str(folder)!r} has no {split!r}; it has "
                f"{', '.join(map(str, splits)) or 'none'}"
            )
        part = folder / str(split)
        if not (part / "state.json").is_file():
            raise ValueError(
                f"data: {str(folder)!r} names the split {split!r}, but "
                f"{str(part / 'state.json')!r} is not there; save it again"
            )
    state = _json(part / "state.json")
    files = _json(part / "state.json", "_data_files", list)
    indices = [k for k, v in state.items() if "indices" in k and v]
    if indices:
        raise ValueError(
            f"data: {str(part)!r} holds a choice of its rows in a file of indices "
            f"({indices[0]}), as old versions of datasets wrote; save it again after "
            "flatten_indices()"
        )
    named = [f.get("filename") if isinstance(f, dict) else None for f in files]
    if not named or not all(isinstance(f, str) and Path(f).name == f for f in named):
        raise ValueError(
            f"data: {str(part / 'state.json')!r} names no files of the data set; save "
            "it again"
        )
    table = open_table([part / str(file) for file in named], part, texts=texts)
    described = _json(part / "dataset_info.json", "features")
    if described:
        # What says the folder, and not each of its files, is what `datasets` believes.
        said = {"info": {"features": described}}
        schema = table.schema.with_metadata({"huggingface": json.dumps(said)})
        table = dataclasses.replace(table, schema=schema)
    whole = part != folder or split == state.get("_split")
    found = table_examples(table, name, None if whole else split, columns)
    return dataclasses.replace(found, split=split)


def _json(path: Path, key: str | None = None, kind: type = dict) -> Any:
    """An object in a file, or a member of it.

    Raises:
      ValueError: the file is absent or damaged, or it has no such member.
    """
    try:
        found = read_json(path.read_bytes())
        found = found if key is None else found.get(key)
        if found is None and kind is dict:
            found = {}
        if not isinstance(found, kind):
            raise ValueError(f"no {kind.__name__} in {key!r}")
    except DAMAGE as error:
        raise ValueError(
            f"data: {str(path)!r} is absent or damaged ({one_line(error)}); save the "
            "data set again"
        ) from None
    return found
