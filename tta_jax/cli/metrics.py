"""`tta-jax metrics`."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from tta_jax._internal.files import check_writable, write_atomically
from tta_jax._internal.tables import write_csv
from tta_jax.cli._feature_files import check_columns, feature_files
from tta_jax.cli._terminal import as_json, bar, print_table
from tta_jax.core.heads import SoftmaxHead
from tta_jax.data.io.features import load_head
from tta_jax.metrics import REGISTRY, load_registered, tabulate
from tta_jax.tasks.loaders import load_task

_MOST_COLUMNS = 8  # of tasks side by side
_ROWS = (".csv", ".parquet")


def metrics(args: argparse.Namespace) -> int:
    if args.list:
        load_registered()
        rows = [
            {
                "metric": m.name,
                "needs": m.needs,
                "gradient": "yes" if m.differentiable else "",
                "sees scale": "yes" if m.sees_scale else "",
                "cost": m.cost,
                "reference": m.reference,
            }
            for m in REGISTRY.values()
        ]
        print(as_json(rows)) if args.json else print_table(rows)
        return 0
    if not args.features:
        raise ValueError(
            "features: name files of features, or folders of them; or ask for --list"
        )
    if args.out:
        check_writable(args.out, "out", _ROWS)
    check_columns(args, [*args.features, *(args.source or ())])
    rows = tabulate_tasks(
        args, feature_files(args, args.features, "features", encoder_folders=True)
    )
    if args.out:
        write_rows(Path(args.out), rows)
    if args.json:
        print(as_json(rows))
    elif args.csv:
        print(write_csv(rows), end="")
    else:
        _show_metrics(rows)
        if args.out:
            print(
                f"\n{len(rows)} rows in {args.out}; compare with the truth: tta-jax "
                f"evaluate {args.out} --truth TRUTH.csv"
            )
    return 0 if any(row["value"] is not None for row in rows) else 1


def tabulate_tasks(
    args: argparse.Namespace, targets: Sequence[Any]
) -> list[dict[str, Any]]:
    sources = (
        feature_files(args, args.source, "source", encoder_folders=True)
        if args.source
        else None
    )
    heads = _heads(args.head or (), [*targets, *(sources or ())])
    with bar("metrics", args.json or args.csv) as progress:
        return tabulate(
            targets,
            sources,
            heads=heads,
            names=args.metrics,
            key=jax.random.key(args.seed),
            progress=progress,
        )


def _heads(
    files: Sequence[str], tasks: Sequence[Any]
) -> dict[str, SoftmaxHead] | SoftmaxHead:
    """Source classifiers by the encoder or source that their file is named after; a
    single one of another name is for all.

    Raises:
      ValueError: for a name that nothing has, where there are several heads or several
        encoders.
    """
    heads = {Path(file).stem: SoftmaxHead(*load_head(file)) for file in files}
    if not heads:
        return {}
    encoders: set[str] = set()
    for _, task in tasks:
        with contextlib.suppress(
            ValueError
        ):  # a file that cannot be read is a blank of its own
            encoders.add(load_task(task).encoder)
    unknown = sorted(set(heads) - encoders - {name for name, _ in tasks})
    if len(heads) == 1 and unknown and len(encoders) <= 1:
        return heads[unknown[0]]
    if unknown:
        known = ", ".join(sorted(encoders - {""})) or "none is known"
        raise ValueError(
            f"head: nothing is called {unknown[0]!r}; name files after encoders "
            f"({known}) or sources"
        )
    return heads


def _show_metrics(rows: list[dict[str, Any]]) -> None:
    """A table for each target: a row for each metric, a column for each encoder where
    all of them have the same single source.
    """

    def number(value):
        return "" if value is None else f"{value:.4g}"

    for target in dict.fromkeys(row["target"] for row in rows):
        mine = [row for row in rows if row["target"] == target]
        encoders = list(
            dict.fromkeys(row["encoder"] for row in mine if row["value"] is not None)
        )
        sources = sorted({row["source"] for row in mine} - {""})
        title = f"{target} (source {sources[0]})" if len(sources) == 1 else target
        if 1 < len(encoders) <= _MOST_COLUMNS and len(sources) <= 1:
            cells = {
                (row["metric"], row["encoder"]): number(row["value"]) for row in mine
            }
            shown = [
                {"metric": metric}
                | {
                    encoder or "(no name)": cells.get((metric, encoder), "")
                    for encoder in encoders
                }
                for metric in dict.fromkeys(row["metric"] for row in mine)
            ]
            print_table(shown, title, left=("metric",))
            for reason, count in _counts(
                [f"{r['metric']}: {r['reason']}" for r in mine if r["value"] is None]
            ):
                print(f"no {reason}" + (f" ({count}x)" if count > 1 else ""))
        else:
            kept = [
                name
                for name in ("encoder", "source")
                if len({row[name] for row in mine} - {""}) > 1
            ]
            shown = [
                {"metric": row["metric"]}
                | {name: row[name] for name in kept}
                | {"value": number(row["value"]), "why not": row["reason"]}
                for row in mine
            ]
            encoder = mine[0]["encoder"] if "encoder" not in kept else ""
            print_table(
                shown,
                f"{title}, {encoder}" if encoder else title,
                left=("metric", *kept, "why not"),
            )
        print()
    print(
        "Larger means better transfer. Compare a metric across encoders or sources, "
        "not with other metrics."
    )


def _counts(words: Sequence[str]) -> list[tuple[str, int]]:
    return [(word, words.count(word)) for word in dict.fromkeys(words)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".csv":
        write_atomically(path, lambda stream: stream.write(write_csv(rows).encode()))
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_atomically(
        path, lambda stream: pq.write_table(pa.Table.from_pylist(rows), stream)
    )
