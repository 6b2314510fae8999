"""Results of units of work as files: what is there is not done again, what is half done
is not there.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tta_jax._internal.files import write_atomically
from tta_jax._internal.text import finite, one_line


@dataclasses.dataclass(frozen=True)
class Unit:
    """A piece of work that gives rows.

    Attributes:
      part: of the study.
      about: what it is about, by name: strings and numbers; every row repeats it.
      reads: files that it reads; other contents make another unit.
      settings: everything else that its rows depend on.
      run: does the work; a list of dictionaries.
    """

    part: str
    about: dict[str, Any]
    reads: tuple[Path, ...]
    settings: dict[str, Any]
    run: Callable[[], list[dict[str, Any]]]

    def __str__(self) -> str:
        return f"{self.part}: " + ", ".join(str(v) for v in self.about.values())


class Store:
    """`folder/PART/KEY.json`, one file a unit."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._hashes: dict[Path, str] = {}

    def path(self, unit: Unit) -> Path:
        told = json.dumps(
            [unit.about, [self.hash(p) for p in unit.reads], unit.settings],
            sort_keys=True,
            default=str,
        )
        return (
            self.folder
            / unit.part
            / f"{hashlib.sha256(told.encode()).hexdigest()[:24]}.json"
        )

    def hash(self, path: Path) -> str:
        if path not in self._hashes:
            with open(path, "rb") as stream:
                self._hashes[path] = hashlib.file_digest(stream, "sha256").hexdigest()
        return self._hashes[path]

    def done(self, unit: Unit) -> bool:
        return self.ready(unit) and self.path(unit).exists()

    def ready(self, unit: Unit) -> bool:
        """Whether all that it reads is there."""
        return all(path.exists() for path in unit.reads)

    def settled(self, unit: Unit, since: float) -> bool:
        """Whether it is done, or was tried in vain since that time (seconds since the
        epoch).
        """
        if self.done(unit) or not self.ready(unit):
            return self.done(unit)
        failed = self.path(unit).with_suffix(".failed")
        return failed.exists() and failed.stat().st_mtime >= since

    def do(self, unit: Unit) -> str:
        """Run a unit and keep its rows; what goes wrong is a row with a reason, which
        the next run tries again.
        """
        begin = time.perf_counter()
        try:
            rows, reason = unit.run(), ""
        except Exception as error:  # whatever it is, the other units go on
            rows, reason = [{}], one_line(error)
        seconds = time.perf_counter() - begin
        known = {"seconds_of_unit": seconds, "revision": revision()}
        rows = [
            unit.about | row | known | {"reason": row.get("reason") or reason}
            for row in rows
        ]
        path = self.path(unit)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(finite(rows)).encode()
        write_atomically(
            path.with_suffix(".failed") if reason else path,
            lambda stream: stream.write(text),
        )
        return f"{seconds:.1f} s" + (f"  FAILED: {reason}" if reason else "")

    def rows(self, units: list[Unit]) -> Iterator[dict[str, Any]]:
        """Rows of the units that are done, and the reasons of those that failed.

        Raises:
          SystemExit: one line that names a damaged file.
        """
        for unit in units:
            if not self.ready(unit):
                continue
            path = self.path(unit)
            failed = path.with_suffix(".failed")
            path = path if path.exists() else failed
            if path.exists():
                try:
                    yield from json.loads(path.read_text())
                except ValueError as error:
                    raise SystemExit(
                        f"{path}: damaged ({error}); delete it, and the same command "
                        "makes it again"
                    ) from None


@functools.cache
def revision() -> str:
    """Of the code, as git says it; empty where there is no repository."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(
            words, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
