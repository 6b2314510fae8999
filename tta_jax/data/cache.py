"""The folder where the library keeps what it has computed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tta_jax._internal.files import write_atomically


def cache_home() -> Path:
    """`$XDG_CACHE_HOME/tta_jax`, or `~/.cache/tta_jax`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tta_jax"


def remembered(
    key: Sequence[str],
    make: Callable[[], Any],
    holds: Callable[[Any], bool] = lambda value: True,
) -> Any:
    """A small fact about a model, from `make` the first time and from a file later.

    Args:
      key: all that the fact depends on.
      make: finds it out; returns JSON values.
      holds: whether a fact that was kept is still true.
    """
    name = hashlib.sha256(json.dumps(list(key)).encode()).hexdigest()
    path = cache_home() / "models" / f"{name}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_bytes())
        if kept["key"] == list(key) and holds(kept["value"]):
            return kept["value"]
    value = make()
    text = json.dumps({"key": list(key), "value": value})
    with contextlib.suppress(OSError):  # it is found out again, then
        write_atomically(path, lambda stream: stream.write(text.encode()))
    return value
