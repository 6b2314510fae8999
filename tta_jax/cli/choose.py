"""`tta-jax choose`."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tta_jax._internal.files import check_writable, write_atomically
from tta_jax._internal.tables import write_csv
from tta_jax._internal.text import printable
from tta_jax.cli._feature_files import feature_files
from tta_jax.cli._raw_data import (
    extraction_options,
    model_options,
    quiet_pictures,
    raw_data,
)
from tta_jax.cli._terminal import (
    as_json,
    as_markdown,
    out_folder,
    print_table,
    terminal,
    written_to,
)
from tta_jax.selection.choice import Choice
from tta_jax.selection.choose import RaceProgress
from tta_jax.selection.choose import choose as run_race
from tta_jax.tasks.task import Task

_LINE_SECONDS = 10.0


def choose(args: argparse.Namespace) -> int:
    if (args.features is None) == (args.data is None or args.encoders is None):
        raise ValueError(
            "data: give --data and --encoders, or --features to choose among features "
            "that are there"
        )
    out = out_folder(args.out)
    if out is not None:
        check_writable(out / "choice.tta", "out", (".tta",))
    quiet = args.json or args.csv or args.markdown
    about: dict[str, Any] = {
        name: getattr(args, name)
        for name in ("budget", "confidence", "measure", "margin", "until")
    }
    if args.features is None:
        quiet_pictures()
        about |= {"data": raw_data(args), "encoders": args.encoders}
        about |= model_options(args) | extraction_options(args)
    else:
        about |= {"features": _features(args)}
    try:
        with _shown(quiet) as progress:
            result = run_race(**about, key=jax.random.key(args.seed), progress=progress)
    except KeyboardInterrupt:
        kept = (
            "what was encoded is kept, the same command goes on from there"
            if args.cache and args.features is None
            else "nothing was kept"
        )
        print(f"tta-jax: interrupted; {kept}", file=sys.stderr)
        return 1
    if out is not None:
        _save(result, out)
    _show(args, result)
    if out is not None and not quiet:
        print(written_to(out))
        print(f"New items: tta-jax predict {out} --data ...")
    return 0


def _features(args: argparse.Namespace) -> dict[str, Task]:
    """Tasks by the name of their encoder, or of their file where that is unknown."""
    found: dict[str, Task] = {}
    for name, load in feature_files(
        args, args.features, "features", encoder_folders=True
    ):
        task = load()
        key = task.encoder or name
        if key in found:
            raise ValueError(
                f"features: two files are of encoder {key!r}; give one file of the "
                "same data for each encoder"
            )
        found[key] = task
    return found


@contextlib.contextmanager
def _shown(quiet: bool) -> Iterator[Callable[[RaceProgress], None] | None]:
    """A live table of the race on a terminal's stderr; a line for each round and every
    ten seconds elsewhere.
    """
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        last = [time.monotonic()]

        def line(now: RaceProgress) -> None:
            if now.phase == "compared" or time.monotonic() - last[0] > _LINE_SECONDS:
                last[0] = time.monotonic()
                best = now.rows[0]
                score = best.get("score", float("nan"))
                shown = f", {best['encoder']} leads at {score:.3f}" if now.seen else ""
                print(
                    f"tta-jax: {now.seen} of {now.total} items{shown}; {now.phase}",
                    file=sys.stderr,
                    flush=True,
                )

        yield line
        return
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    def table(now: RaceProgress) -> Table:
        made = Table(box=None, pad_edge=False, title_justify="left")
        made.title = Text(printable(f"{now.seen} of {now.total} items, {now.phase}"))
        for name in ("encoder", "items", "score", "accuracy", "worse by", "seconds"):
            made.add_column(name, justify="left" if name == "encoder" else "right")
        made.add_column("")
        for row in now.rows:
            figures = [
                f"{row[name]:.3f}" if np.isfinite(row.get(name, np.nan)) else ""
                for name in ("score", "accuracy", "worse")
            ]
            made.add_row(
                Text(printable(row["encoder"])),
                str(row["items"]),
                *figures,
                f"{row['seconds']:.1f}",
                row["why"],
            )
        return made

    with Live(
        console=Console(file=terminal(sys.stderr)), transient=True, refresh_per_second=4
    ) as live:
        yield lambda now: live.update(table(now))


def _save(result: Choice, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    result.save(out / "choice.tta")

    def written(name: str, text: str) -> None:
        write_atomically(out / name, lambda stream: stream.write(text.encode()))

    written("choice.json", as_json(result.to_dict()) + "\n")
    written("summary.txt", result.summary() + "\n")
    written("table.csv", write_csv(result.table()))
    try:
        from tta_jax.report.figures.race import race_figure

        race_figure(result, out / "figure.png")
    except ValueError as error:
        print(f"tta-jax: no figure: {error}", file=sys.stderr)


def _show(args: argparse.Namespace, result: Choice) -> None:
    if args.json:
        print(as_json(result.to_dict()))
        return
    if args.csv:
        print(write_csv(result.table()), end="")
        return

    def span(row: dict[str, Any], name: str) -> str:
        if not np.isfinite(row[name]):
            return ""
        return (
            f"{row[name]:.3f} ({row[f'{name}_low']:.2f} to {row[f'{name}_high']:.2f})"
        )

    shown = []
    for row in result.table():
        best = row["encoder"] == result.best
        shown.append(
            {
                "encoder": row["encoder"],
                "items": str(row["items"]),
                "score": span(row, "score"),
                "accuracy": span(row, "accuracy"),
                "worse by": "" if best else span(row, "worse"),
                "seconds": f"{row['seconds']:.1f}",
                "": row["why"],
            }
        )
    unit = (
        "loss, of guessing's" if result.measure == "loss" else "accuracy above chance"
    )
    title = f"{result.data}: {len(result.class_names)} classes; worse by: {unit}"
    if args.markdown:
        print(as_markdown(shown, title))
        return
    print_table(shown, title, left=("encoder", ""))
    print("\n" + result.summary())
