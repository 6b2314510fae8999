"""What the commands share: a progress bar, kept compilations, a table, JSON."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from tta_jax._internal.text import finite, one_line, printable
from tta_jax._internal.warning import DataWarning
from tta_jax.config import Config
from tta_jax.data.cache import cache_home
from tta_jax.data.extraction.cache import processor

if TYPE_CHECKING:
    from tta_jax.config import Config

_MOST_KEPT = 1 << 29  # bytes of compiled programs that are kept
_LINE_SECONDS = 10.0


@contextlib.contextmanager
def notes() -> Iterator[None]:
    """Show each `DataWarning` as one line on stderr; other warnings as Python does."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", DataWarning)
        others, said = warnings.showwarning, set()

        def show(message, category, filename, lineno, file=None, line=None):
            if not issubclass(category, DataWarning):
                others(message, category, filename, lineno, file, line)
            elif (text := one_line(message)) not in said:
                said.add(text)
                print(f"tta-jax: note: {text}", file=sys.stderr)

        warnings.showwarning = show
        yield


@contextlib.contextmanager
def bar(what: str, quiet: bool) -> Iterator:
    """A progress bar on a terminal's stderr; yields a callback (phase, share done)."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=Console(file=terminal(sys.stderr)), transient=True
    ) as progress:
        row = progress.add_task(escape(printable(what)), total=1.0)
        yield lambda phase, share: progress.update(
            row, description=escape(printable(f"{what}: {phase}")), completed=share
        )


@contextlib.contextmanager
def scan_progress(quiet: bool) -> Iterator[Callable[[Any], None] | None]:
    """Progress of a scan on stderr: a bar on a terminal, a line every ten seconds
    otherwise; yields a callback for `Progress`.
    """
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        last = [0.0, ""]

        def line(now: Any) -> None:
            if now.note:
                print(f"tta-jax: {now.note}", file=sys.stderr)
            # Every phase begins with a line of its own.
            if (
                now.phase != last[1]
                or time.monotonic() - last[0] > _LINE_SECONDS
                or now.done == now.total > 0
            ):
                last[:] = [time.monotonic(), now.phase]
                print(
                    f"tta-jax: {now.phase} {_standing(now)}",
                    file=sys.stderr,
                    flush=True,
                )

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description:>8}"),
        BarColumn(),
        TextColumn("{task.fields[standing]}"),
    )
    with Progress(
        *columns, console=Console(file=terminal(sys.stderr)), transient=True
    ) as shown:
        rows: dict[str, Any] = {}

        def update(now: Any) -> None:
            if now.note:
                shown.console.print(
                    f"tta-jax: {printable(now.note)}", markup=False, highlight=False
                )
            if now.phase not in rows:
                rows[now.phase] = shown.add_task(
                    now.phase, total=now.total or None, standing=""
                )
            shown.update(
                rows[now.phase],
                completed=now.done,
                total=now.total or None,
                standing=_standing(now),
            )

        yield update


def _standing(now: Any) -> str:
    """Share done, rate, time left, failures."""
    unit = "pairs" if now.phase in ("screen", "refine") else "tasks"
    text = f"{now.done:,}" + (
        f" of {now.total:,} {unit} ({now.done / now.total:.0%})"
        if now.total
        else f" {unit}"
    )
    if now.seconds > 0 and now.done:
        text += f", {now.rate:,.0f}/s" if now.rate >= 10 else f", {now.rate:.2g}/s"
    if now.total and 0 < now.done < now.total:
        minutes, seconds = divmod(int(now.left), 60)
        text += f", {minutes // 60}:{minutes % 60:02}:{seconds:02} left"
    return text + (f", {now.failed:,} failed" if now.failed else "")


def keep_compilations() -> None:
    """Keep compiled programs between calls of the command, unless the user has settled
    that with jax: only the first one waits.

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


def config_of(args: argparse.Namespace) -> Config:
    """The `Config` of the options that were given."""
    named = {f.name: getattr(args, f.name, None) for f in dataclasses.fields(Config)}
    return Config(**{name: value for name, value in named.items() if value is not None})


def as_json(value: Any) -> str:
    """JSON text; NaN and infinities become null."""
    return json.dumps(finite(value), indent=2, allow_nan=False)


def out_folder(where: str | None) -> Path | None:
    """The folder of `--out`, where one is named.

    Raises:
      ValueError: if it is a file.
    """
    if where and Path(where).exists() and not Path(where).is_dir():
        raise ValueError(f"out: {where!r} is a file; name a directory")
    return Path(where) if where else None


def written_to(out: Path) -> str:
    """What stands in a folder, to be said after writing there."""
    return f"\nWritten to {out}: " + ", ".join(
        sorted(p.name for p in out.iterdir() if not p.name.startswith("."))
    )


def as_markdown(rows: Sequence[dict], title: str = "") -> str:
    """A Markdown table of rows with the same keys."""

    def clean(value):
        # Neither columns nor HTML, code or links out of names.
        text = _cell(value).replace("<", "&lt;")
        return re.sub(r"[|`[\]]", r"\\\g<0>", text)

    lines = [f"**{clean(title)}**", ""] if title else []
    header = " | ".join(map(clean, rows[0]))
    lines += [f"| {header} |", "|" + "---|" * len(rows[0])]
    return "\n".join(
        [
            *lines,
            *("| " + " | ".join(clean(v) for v in row.values()) + " |" for row in rows),
        ]
    )


def print_table(
    rows: Sequence[dict], title: str = "", left: Sequence[str] | None = None
) -> None:
    """Rows with the same keys; fractions with two digits; columns of `left`, or of text
    when None, to the left.
    """
    from rich.console import Console
    from rich.table import Table

    words = (
        [name for name in rows[0] if isinstance(rows[0][name], str)]
        if left is None
        else left
    )
    table = Table(
        title=printable(title) or None, title_justify="left", box=None, pad_edge=False
    )
    for name in rows[0]:
        table.add_column(
            printable(name),
            justify="left" if name in words else "right",
            no_wrap=name not in words,
        )
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    Console(
        file=terminal(sys.stdout),
        width=None if sys.stdout.isatty() else 200,
        highlight=False,
        markup=False,
    ).print(table)


def terminal(stream: Any) -> Any:
    """The stream itself, for what writes control codes of its own."""
    return getattr(stream, "stream", stream)


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else printable(value)
