"""What commands find where they are told to look for features."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tta_jax.data.io.features import FORMATS, load_task
from tta_jax.data.io.formats import TABLES
from tta_jax.tasks.loaders import Loader
from tta_jax.tasks.task import Task


def table_columns(args: argparse.Namespace, where: str) -> dict[str, str | None]:
    """The columns that a command names, for a file that has columns."""
    first, _, second = where.partition(",")
    if Path(second or first).suffix not in TABLES and not Path(where).is_dir():
        return {}
    return {
        "column": None if second else args.column,
        "label_column": args.label_column,
    }


def check_columns(args: argparse.Namespace, places: Sequence[str]) -> None:
    """Refuse columns where no file has any.

    Raises:
      ValueError: names the option.
    """
    named = [table_columns(args, where) for where in places]
    for option, given in (("column", args.column), ("label_column", args.label_column)):
        if given is not None and not any(columns.get(option) for columns in named):
            raise ValueError(
                f"{option}: found {given!r}, but {', '.join(map(repr, places))} has no "
                "columns to choose from; leave it out"
            )


def feature_files(
    args: argparse.Namespace,
    places: list[str],
    argument: str,
    known: dict[Path, Loader] | None = None,
    *,
    encoder_folders: bool = False,
) -> list[tuple[str, Loader]]:
    """Files of features, and those below folders, by name, each with the function that
    loads it.

    Args:
      args: of the command; `column` and `label_column` count.
      places: files and folders.
      argument: for messages.
      known: functions of files that were met before; the same function is the same
        task.
      encoder_folders: of a file that does not tell its encoder, the folder that it lies
        in names it, where that is not the only place.
    """
    known = {} if known is None else known
    files: dict[Path, str] = {}
    several = len(places) > 1
    for place in map(Path, places):
        if place.is_dir():
            inside = sorted(
                p
                for p in place.rglob("*")
                if p.suffix in FORMATS
                and p.is_file()
                and not p.name.startswith(".")
                and not _belongs_to_npy(p)
            )
            if not inside:
                raise ValueError(
                    f"{argument}: folder {str(place)!r} holds no {', '.join(FORMATS)}"
                )
            files |= {
                file: file.parent.name if file.parent != place or several else ""
                for file in inside
            }
        elif place.is_file():
            files[place] = place.resolve().parent.name if several else ""
        else:
            raise ValueError(f"{argument}: there is no file or folder {str(place)!r}")

    def read(file, folder):
        encoder = folder if encoder_folders else ""
        return partial(_load, str(file), encoder, table_columns(args, str(file)))

    return [
        (file.stem, known.setdefault(file, read(file, folder)))
        for file, folder in files.items()
    ]


def _belongs_to_npy(path: Path) -> bool:
    """Whether it holds the labels of an .npy beside it."""
    return (
        path.name.endswith(".meta.npz")
        and path.with_name(path.name.removesuffix(".meta.npz") + ".npy").exists()
    )


def _load(where: str, encoder: str, columns: dict[str, str | None]) -> Task:
    task = load_task(where, "file", **columns)
    return (
        task
        if task.encoder or not encoder
        else dataclasses.replace(task, encoder=encoder)
    )
