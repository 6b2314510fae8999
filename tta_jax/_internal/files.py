"""Find files below a folder; write files atomically."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path


def files_below(folder: Path) -> list[Path]:
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


def write_atomically(path: str | os.PathLike, write) -> None:
    """Call `write(stream)` on a temporary neighbour and rename it: nothing half-written
    stays under `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def check_writable(
    path: str | os.PathLike, argument: str, suffixes: Sequence[str]
) -> None:
    """Find out before long work whether a file can be written; folders that are missing
    are made.

    Raises:
      ValueError: names `argument`, what was found and what to do.
    """
    path = Path(path)
    if path.suffix not in suffixes:
        raise ValueError(f"{argument}: {str(path)!r} is not {' or '.join(suffixes)}")
    if path.is_dir():
        raise ValueError(f"{argument}: {str(path)!r} is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ValueError(
            f"{argument}: cannot write to folder {str(path.parent)!r} "
            f"({error.strerror}); name another"
        ) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
