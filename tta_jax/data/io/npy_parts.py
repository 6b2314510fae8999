"""Features in numbered .npy files of one folder, with a table for each: the layout of
clip-retrieval and embedding-reader.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tta_jax._internal.warning import warn_of_data
from tta_jax.data.io.formats import beside_features, neighbour, read_npy
from tta_jax.data.io.tables import TextFormat, default_label, open_table, table_files

_ENDING = "_emb"  # of folders of features; their tables lie in `metadata` beside them
_METADATA = "metadata"
_NUMBERED = re.compile(r"(.*?)([0-9]{1,18})")


def embedding_folders(folder: Path) -> list[Path]:
    """Sub-folders `img_emb`, `text_emb` ... that hold .npy files."""
    return [
        path
        for path in sorted(folder.glob(f"*{_ENDING}"))
        if path.is_dir() and _npy_files(path)
    ]


def data_folder(folder: Path) -> Path:
    """The folder of the whole data set, for that of its features."""
    return folder.parent if folder.name.endswith(_ENDING) else folder


def holds_parts(folder: Path) -> bool:
    """Whether features lie in a folder as .npy files, or in its sub-folder
    `img_emb`.
    """
    return bool(_npy_files(folder) or embedding_folders(folder))


def read_npy_parts(
    folder: Path, argument: str, label_column: str | None, group_column: str | None
) -> dict[str, Any]:
    """Read features `(n, d)` part by part, in the order of their numbers, and labels
    and groups from the tables in `metadata` that have the same numbers.

    Args:
      folder: with parts such as `img_emb_0.npy`, or with one sub-folder of them.
      argument: what messages call it.
      label_column, group_column: as for `load_features`.

    Raises:
      ValueError: names two files that disagree, or one that is absent or damaged.
    """
    inside = embedding_folders(folder)
    if len(inside) > 1:
        raise ValueError(
            f"{argument}: {str(folder)!r} holds several folders of features; name one: "
            f"{', '.join(repr(str(path)) for path in inside)}"
        )
    place = inside[0] if inside else folder
    files = _numbered(_npy_files(place), argument)
    _tell_of_gap(list(files), place, argument)
    features, counts = _stacked(list(files.values()), argument)
    above = data_folder(place)
    found: dict[str, Any] = {"features": features}
    if not (above / _METADATA).is_dir():
        for name, given in (
            ("label_column", label_column),
            ("group_column", group_column),
        ):
            if given is not None:
                raise ValueError(
                    f"{name}: found {given!r}, but {str(above)!r} has no folder "
                    f"{_METADATA!r} with tables; leave it out"
                )
        return found
    tables = _numbered(table_files(above / _METADATA), argument)
    for number, file in files.items():
        if number not in tables:
            has = ", ".join(path.name for path in list(tables.values())[:5]) or "none"
            raise ValueError(
                f"{argument}: {str(file)!r} has no table of number {number} in "
                f"{str(above / _METADATA)!r}, which has {has}"
            )
    for number, path in tables.items():
        if number not in files:
            raise ValueError(
                f"{argument}: {str(path)!r} has no features of number {number} in "
                f"{str(place)!r}; fetch them, or remove it"
            )
    beside = [tables[number] for number in files]
    table = open_table(beside, above / _METADATA, argument, TextFormat())
    for file, rows, path, (_, count) in zip(
        files.values(), counts, beside, table.parts, strict=True
    ):
        if rows != count:
            raise ValueError(
                f"{argument}: {str(file)!r} has {rows} rows, but {str(path)!r} has "
                f"{count}; both need as many"
            )
    label = label_column or default_label(
        [name for name in table.names if name != group_column],
        ("labels", "label"),
        "",
        table.where,
    )
    return found | beside_features(table, label, group_column)


def _npy_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() == ".npy"
        and path.is_file()
        and not path.name.startswith(".")
    )


def _numbered(files: Sequence[Path], argument: str) -> dict[int, Path]:
    """Files by the number that their name ends with, in order.

    Raises:
      ValueError: a name has none, two have the same, or names differ before it.
    """
    found: dict[int, Path] = {}
    start: str | None = None
    for file in files:
        parsed = _NUMBERED.fullmatch(file.stem)
        if parsed is None or neighbour(file).exists():
            raise ValueError(
                f"{argument}: {str(file)!r} is no numbered part of the features of its "
                "folder, such as features_0.npy; name the file itself"
            )
        if start not in (None, parsed[1]):
            raise ValueError(
                f"{argument}: {files[0].name!r} and {file.name!r} of "
                f"{str(file.parent)!r} are parts of different arrays; name one file, "
                "or put each array into a folder of its own"
            )
        start, number = parsed[1], int(parsed[2])
        if number in found:
            raise ValueError(
                f"{argument}: {found[number].name!r} and {file.name!r} of "
                f"{str(file.parent)!r} have the same number; remove one"
            )
        found[number] = file
    return {number: found[number] for number in sorted(found)}


def _tell_of_gap(numbers: Sequence[int], folder: Path, argument: str) -> None:
    gap = next((k for k in range(numbers[0], numbers[-1]) if k not in numbers), None)
    if gap is not None:
        warn_of_data(
            f"{argument}: {str(folder)!r} has parts {numbers[0]} to {numbers[-1]} "
            f"without number {gap}; see that none was forgotten"
        )


def _stacked(files: Sequence[Path], argument: str) -> tuple[np.ndarray, list[int]]:
    """Rows of several .npy, memory-mapped where there is one, and how many each has.

    Raises:
      ValueError: they differ in dtype or number of features.
    """
    parts = [read_npy(file, argument) for file in files]
    first = parts[0]
    for file, part in zip(files, parts, strict=True):
        if part.ndim != 2 or part.shape[1:] != first.shape[1:]:
            raise ValueError(
                f"{argument}: {str(files[0])!r} has shape {first.shape}, but "
                f"{str(file)!r} {part.shape}; (n, d) with one d is needed"
            )
        if part.dtype != first.dtype:
            raise ValueError(
                f"{argument}: {str(files[0])!r} has dtype {first.dtype}, but "
                f"{str(file)!r} {part.dtype}; write both with one"
            )
    rows = [len(part) for part in parts]
    if len(parts) == 1:
        return first, rows
    out = np.empty((sum(rows), first.shape[1]), first.dtype)
    at = 0
    for part in parts:
        out[at : at + len(part)] = part
        at += len(part)
    return out, rows
