"""The store of extracted features."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tta_jax._internal.files import write_atomically
from tta_jax._internal.serialization import DAMAGE, read_arrays
from tta_jax._internal.text import read_json

_NAME = re.compile(r"(?P<half>\.)?(?P<key>[0-9a-f]{64})\.npz(?(half)\..+)$")
MOST_KEPT = 8 << 30  # bytes of features; the least recently used go first


@dataclasses.dataclass(frozen=True, eq=False)
class Chunk:
    """Features of consecutive items.

    Attributes:
      features: `(m, d)`, one row for each item that could be encoded.
      kept: `(m,)` their places in the chunk.
      skipped: place in the chunk -> reason, for the others.
    """

    features: np.ndarray
    kept: np.ndarray
    skipped: dict[int, str]


@dataclasses.dataclass(frozen=True)
class Store:
    """Chunks under keys that name all that could change them; each is one file, written
    atomically.
    """

    folder: Path

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npz"

    def read(self, key: str) -> Chunk | None:
        """What is kept under `key`; None where nothing is, or something damaged."""
        path = self.path(key)
        try:
            arrays = read_arrays(path)
            if str(arrays["key"]) != key:
                return None  # a copy of another chunk
            skipped = read_json(str(arrays["skipped"]))
            chunk = Chunk(
                arrays["features"],
                arrays["kept"],
                {int(i): why for i, why in skipped.items()},
            )
            os.utime(path)  # used now
        except DAMAGE:
            return None
        return chunk

    def write(self, key: str, chunk: Chunk) -> None:
        """Keep a chunk.

        Raises:
          ValueError: the folder cannot be written to; names `cache`.
        """
        arrays: dict[str, Any] = {
            "features": chunk.features,
            "kept": chunk.kept,
            "skipped": np.array(json.dumps(chunk.skipped)),
            "key": np.array(key),
        }
        try:
            write_atomically(self.path(key), lambda stream: np.savez(stream, **arrays))
        except OSError as error:
            raise ValueError(
                f"cache: cannot write below {str(self.folder)!r} ({error.strerror}); "
                "make room, name another folder, "
                "or do without: cache=False (--no-cache)"
            ) from None

    def prune(self, most: int, since: float) -> None:
        """Remove the least recently used chunks until `most` bytes are left, none that
        was used after `since`.

        Nothing else in the folder is touched, but for what killed writes left behind.
        """
        files = []
        for path in self.folder.glob("*/*"):
            name = _NAME.match(path.name)
            if name is None or name["key"][:2] != path.parent.name:
                continue
            if name["half"]:
                with contextlib.suppress(OSError):
                    if path.stat().st_mtime < since - 86400:
                        path.unlink()
                continue
            with contextlib.suppress(OSError):  # another process may prune, too
                stat = path.stat()
                files.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in files)
        for used, size, path in sorted(files):
            if total <= most or used >= since:
                return
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size


def processor() -> str:
    """A name for this kind of processor: programs for one may not run on another, or
    give other last bits.
    """
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else [platform.processor()]
    # The features of the first processor, the same in every line.
    features = next(
        (line for line in lines if line.startswith(("flags", "Features"))), lines[0]
    )
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:12]}"


def key_of(parts: Iterable[bytes]) -> str:
    """SHA-256 of parts, each preceded by its length."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
