"""Prepare and open the registered tasks."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tta_jax._internal.text import one_line
from tta_jax.data.examples import Examples
from tta_jax.data.registry import TASKS, data_home, is_prepared, task_folder, task_spec


def task_rows(data_dir: str | os.PathLike | None = None) -> list[dict[str, Any]]:
    """One row a task: what it is, its licence, whether its package is installed and
    where it is prepared.
    """
    rows = []
    for name, spec in TASKS.items():
        try:
            spec.paths(name)
            installed = "yes"
        except ValueError:
            installed = "no"
        folder = task_folder(name, data_dir)
        prepared = is_prepared(folder)
        rows.append(
            {
                "name": name,
                "modality": spec.modality,
                "items": spec.items,
                "classes": len(spec.classes),
                "splits": ", ".join(
                    f"{split} {count}" for split, count in spec.splits.items()
                ),
                "licence": spec.licence,
                "installed": installed,
                "prepared": "yes" if prepared else "no",
                "where": str(folder) if prepared else "",
            }
        )
    return rows


def prepare_task(
    name: str,
    data_dir: str | os.PathLike | None = None,
    source: str | os.PathLike | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Path:
    """Write task `name` as a TFDS data set (array_record), unless it is there already;
    returns its folder.

    Args:
      data_dir: where TFDS data sets are prepared; see `data_home`.
      source: a .deb, or the folder that it was unpacked in, for the tasks in Debian
        packages; where it is installed, when left out.
      progress: called with what is being done and the share done.

    Raises:
      ValueError: unknown task, package not installed, wrong or damaged source, folder
        that cannot be written; one line.
    """
    spec, folder = task_spec(name), task_folder(name, data_dir)
    if is_prepared(folder):
        return folder
    if source is not None and not spec.debian:
        raise ValueError(
            f"source: {name} is read from the installed package {spec.package}; leave "
            "it (--from) out"
        )
    paths = spec.paths(name) if source is None else [Path(source).expanduser()]
    from tta_jax.data.tfds import library

    library("array_record")  # says what to install
    from tta_jax.data.builders import build

    try:
        with _without_leftovers(folder):
            build(name, paths, data_home(data_dir), progress)
    except OSError as error:
        if not is_prepared(folder):  # else another process was quicker
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            hint = "; make room or name another folder" if full else ""
            raise ValueError(
                f"data_dir: cannot write {str(folder)!r} ({one_line(error)}){hint}"
            ) from None
    return folder


@contextlib.contextmanager
def _without_leftovers(folder: Path) -> Iterator[None]:
    """Remove what killed runs have left beside `folder`, and lock it meanwhile.

    TFDS writes to a folder of another name first. Where the lock is held, another run
    is writing, and nothing is removed.
    """
    import filelock

    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except (filelock.Timeout, OSError, NotImplementedError):
        yield  # a run is going on, or the file system has no locks
        return
    try:
        for left in folder.parent.glob(f"incomplete.*_{folder.name}"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        lock.release()


def open_task(
    name: str, split: str | None = None, data_dir: str | os.PathLike | None = None
) -> Examples:
    """A prepared task, or a part of it (`train[:500]`), read item by item; see
    `open_tfds`.

    Raises:
      ValueError: unknown task or split, or not prepared; names the command that
        prepares it.
    """
    spec, folder = task_spec(name), task_folder(name, data_dir)
    if not is_prepared(folder):
        where = "" if data_dir is None else f" --data-dir {os.fspath(data_dir)}"
        raise ValueError(
            f"data: {name!r} is not prepared in {str(folder)!r}; prepare it with: "
            f"tta-jax data prepare {name}{where}"
        )
    from tta_jax.data.tfds import open_folder

    found = open_folder(folder, split)
    more = {"kind": "task", "task": name, "package": spec.package}
    return dataclasses.replace(
        found, name=name, provenance={**found.provenance, **more}
    )
