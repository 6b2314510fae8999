"""What the commands share: a progress bar, kept compilations, a table, JSON."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from tta_jax.archive import finite
from tta_jax.data.cache import cache_home, processor

_MOST_KEPT = 1 << 29  # bytes of compiled programs that are kept


@contextlib.contextmanager
def bar(what: str, quiet: bool) -> Iterator:
    """A progress bar on a terminal's stderr; yields a callback (phase, share done)."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        row = progress.add_task(what, total=1.0)
        yield lambda phase, share: progress.update(row, description=f"{what}: {phase}", completed=share)


def keep_compilations() -> None:
    """Keep compiled programs between calls of the command, unless the user has settled that with jax: only the first one waits.

    Each kind of processor has a folder of its own, where home is shared.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore[reportAttributeAccessIssue]
        return
    try:
        folder = cache_home() / processor()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or none that can be written to
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _MOST_KEPT)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


def as_json(value: Any) -> str:
    """JSON text; NaN and infinities become null."""
    return json.dumps(finite(value), indent=2, allow_nan=False)


def print_table(rows: Sequence[dict], title: str) -> None:
    """Rows with the same keys; numbers to the right, fractions with two digits."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
