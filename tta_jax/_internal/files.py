"""Find files, read those that may be damaged, and write files atomically."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from tta_jax._internal.text import one_line

Function = TypeVar("Function", bound=Callable)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_BINARY = getattr(os, "O_BINARY", 0)  # of Windows


@contextlib.contextmanager
def reading(
    argument: str, path: str | os.PathLike, kind: str, *more: str | os.PathLike
) -> Iterator[None]:
    """Turn whatever a reader raises into a ValueError of one line that names the file.

    Libraries raise anything on damaged bytes. A ValueError that names the file or
    begins with the argument that it is about stays as it is.

    Args:
      argument: what the message calls the file.
      path: of the file or folder that is read.
      kind: what it should be, with its article.
      *more: other paths that an error may name instead.

    Raises:
      ValueError: for every exception of the block.
    """
    try:
        yield
    except Exception as error:
        says, where = one_line(error), repr(str(path))
        if type(error) is ValueError and (
            any(repr(str(file))[1:-1] in says for file in (path, *more))
            or re.match("[a-z_]+: ", says)
        ):
            if says == str(error):
                raise
            raise ValueError(says) from None
        if isinstance(error, OSError) and error.errno is not None:
            raise ValueError(
                f"{argument}: {where} cannot be read ({error.strerror})"
            ) from None
        raise ValueError(
            f"{argument}: {where} is damaged or not {kind} ({says})"
        ) from None


def naming_file(argument: str, kind: str) -> Callable[[Function], Function]:
    """Decorate a function whose first parameter is a path: `reading` around it.

    Args:
      argument, kind: as for `reading`.
    """

    def decorate(function):
        @functools.wraps(function)
        def guarded(*args, **kwargs):
            path = args[0] if args else next(iter(kwargs.values()), "")
            with reading(argument, path, kind):
                return function(*args, **kwargs)

        return guarded

    return decorate  # pyright: ignore[reportReturnType]


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

    Raises:
      OSError: it cannot be written; where the disk is full, it says what to do.
    """
    path = Path(path)
    # The system applies the umask, and a part of the name leaves space for the rest.
    name = os.fsdecode(os.fsencode(path.name)[:200])
    half = path.parent / f".{name}.{secrets.token_hex(8)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(half, os.O_CREAT | os.O_EXCL | os.O_WRONLY | _BINARY, 0o666)
        with os.fdopen(handle, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(half, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            half.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _FULL:
            raise OSError(
                error.errno,
                f"{error.strerror}; make room or name another folder",
                str(path),
            ) from None
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
