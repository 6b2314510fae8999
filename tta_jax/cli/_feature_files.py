"""What commands find where they are told to look for features."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tta_jax.data.io.features import FORMATS, load_task, table_options
from tta_jax.data.io.npy_parts import embedding_folders
from tta_jax.tasks.loaders import Loader
from tta_jax.tasks.task import Task

_OPTIONS = ("column", "label_column", "group_column", "separator", "encoding")


def table_columns(args: argparse.Namespace, where: str) -> dict[str, str | None]:
    """The options of tables that a command names, for a file that has a use for
    them.
    """
    return {option: getattr(args, option) for option in table_options(where)}


def check_columns(args: argparse.Namespace, places: Sequence[str]) -> None:
    """Refuse options of tables that no file has a use for.

    Raises:
      ValueError: names the option.
    """
    usable = {option for where in places for option in table_options(where)}
    for option in _OPTIONS:
        given = getattr(args, option)
        if given is not None and option not in usable:
            raise ValueError(
                f"{option}: found {given!r}, but {', '.join(map(repr, places))} has no "
                "columns to choose from, or none in text; leave it out"
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
      args: of the command; options of tables count.
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
            inside = _features_below(place)
            if not inside:
                raise ValueError(
                    f"{argument}: folder {str(place)!r} holds no {', '.join(FORMATS)}"
                )
            files |= {
                file: file.resolve().parent.name
                if several or place not in (file, file.parent)
                else ""
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
        (
            file.resolve().name if file.is_dir() else file.stem,
            known.setdefault(file, read(file, folder)),
        )
        for file, folder in files.items()
    ]


def _features_below(folder: Path) -> list[Path]:
    """Files of features below a folder, and folders of numbered parts (`img_emb` with
    `metadata`), which are one task each.
    """
    if embedding_folders(folder):
        return [folder]
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            found += _features_below(path)
        elif (
            path.suffix.lower() in FORMATS
            and path.is_file()
            and not _belongs_to_npy(path)
        ):
            found.append(path)
    return found


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
