"""How much memory a process has held at most."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path


def forget_peak() -> None:
    """From here on `peak` is of what follows, where the system can be told to
    forget.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """GB, of this process alone: on Linux `ru_maxrss` of a process begins at what the
    one that started it held.
    """
    status = Path("/proc/self/status")
    if status.exists():
        held = next(
            (
                line
                for line in status.read_text().splitlines()
                if line.startswith("VmHWM:")
            ),
            None,
        )
        if held is not None:
            return int(held.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**30 if sys.platform == "darwin" else 2**20
    )
