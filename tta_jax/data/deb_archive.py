"""Files of a Debian package: out of the .deb, or of a folder that it was unpacked or
installed in. Nothing is written.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tta_jax._internal.limits import check_expansion
from tta_jax._internal.serialization import DAMAGE
from tta_jax._internal.text import one_line

_HEADER = 60  # bytes before each member of an ar archive [ar(5)]
_OPENERS: dict[str, Callable[[Any], Any]] = {
    ".xz": lzma.open,
    ".gz": gzip.open,
    ".bz2": bz2.open,
    "": lambda stream: stream,
}


def package_files(
    source: Path, prefix: str, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, bytes]]:
    """Names below `prefix` (e.g. "usr/share/datasets") and contents of the wanted
    regular files.

    Args:
      source: a .deb, read front to back; or a folder that holds `prefix`, or what
        `prefix` holds.
      prefix: a folder of the package, without slashes around it.
      wanted: says of a name below `prefix` whether its content is needed.

    Raises:
      ValueError: one line that names `source`, for what is neither, a damaged .deb, or
        one without a wanted file.
    """
    if not source.exists():
        raise ValueError(f"source: there is no file or folder {str(source)!r}")
    files = _of_folder if source.is_dir() else _of_deb
    empty = True
    for name, content in files(source, prefix, wanted):
        empty = False
        yield name, content
    if empty:
        raise ValueError(
            f"source: {str(source)!r} holds no data in {prefix}; give the right "
            "package, or the folder it was unpacked in"
        )


def _of_folder(
    source: Path, prefix: str, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, bytes]]:
    root = source / prefix if (source / prefix).is_dir() else source
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if wanted(name) and path.is_file():
            yield name, path.read_bytes()


def _of_deb(
    source: Path, prefix: str, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, bytes]]:
    start = prefix + "/"
    try:
        with source.open("rb") as stream:
            content, compression = _data_member(stream)
            with (
                _OPENERS[compression](content) as unpacked,
                tarfile.open(fileobj=unpacked, mode="r|") as archive,
            ):
                for member in archive:
                    name = member.name.removeprefix("./")
                    if not (
                        member.isreg()
                        and name.startswith(start)
                        and wanted(name.removeprefix(start))
                    ):
                        continue
                    check_expansion(member.size, source.stat().st_size)
                    held = archive.extractfile(member)
                    data = b"" if held is None else held.read()
                    if len(data) < member.size:
                        raise EOFError("it ends early")
                    yield name.removeprefix(start), data
    except DAMAGE as error:
        raise ValueError(
            f"source: {str(source)!r} is damaged or no Debian package "
            f"({one_line(error)}); fetch it anew with: apt-get download"
        ) from None


def _data_member(stream: io.BufferedReader) -> tuple[Any, str]:
    """The member with the package's files, as a stream, and the suffix of its
    compression [deb(5)].
    """
    if stream.read(8) != b"!<arch>\n":
        raise ValueError("it does not begin as one does")
    while header := stream.read(_HEADER):
        if len(header) < _HEADER or header[58:] != b"`\n":
            raise EOFError("it ends early")
        name, size = (
            header[:16].decode("latin-1").strip().rstrip("/"),
            int(header[48:58]),
        )
        if name.startswith("data.tar"):
            compression = name.removeprefix("data.tar")
            if compression not in _OPENERS:
                raise ValueError(
                    f"its files are compressed as {compression}; unpack it with "
                    "dpkg-deb -x and give the folder"
                )
            return io.BufferedReader(_Window(stream, size)), compression
        stream.seek(size + size % 2, io.SEEK_CUR)
    raise ValueError("it holds no data.tar")


class _Window(io.RawIOBase):
    """The next `size` bytes of a stream, which must be there."""

    def __init__(self, stream: io.BufferedReader, size: int):
        self._stream, self._left = stream, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(min(len(buffer), self._left))
        if not data and self._left:
            raise EOFError("it ends early")
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)
