"""`metrics` and `evaluate`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tta_jax.archive import check_writable, one_line, write_atomically
from tta_jax.cli.files import feature_files
from tta_jax.cli.terminal import (
    as_csv,
    as_json,
    as_markdown,
    bar,
    out_folder,
    print_table,
    written_to,
)
from tta_jax.data.encoders import ENCODERS
from tta_jax.data.features import load_head
from tta_jax.evaluation import MARKS, Evaluation
from tta_jax.evaluation import evaluate as run_evaluation
from tta_jax.head import SoftmaxHead
from tta_jax.metrics import REGISTRY, tabulate
from tta_jax.probe import ground_truth
from tta_jax.ranking import check_options, check_statistic
from tta_jax.several import loaded
from tta_jax.task import Task

_MOST_COLUMNS = 8  # of tasks side by side
_ROWS = (".csv", ".parquet")


def metrics(args: argparse.Namespace) -> int:
    if args.list:
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
    rows = _tabulate(
        args, feature_files(args.features, "features", encoder_folders=True)
    )
    if args.out:
        _write_rows(Path(args.out), rows)
    if args.json:
        print(as_json(rows))
    elif args.csv:
        print(as_csv(rows), end="")
    else:
        _show_metrics(rows)
        if args.out:
            print(
                f"\n{len(rows)} rows in {args.out}; compare with the truth: "
                "tta-jax "
                f"evaluate {args.out} --truth TRUTH.csv"
            )
    return 0 if any(row["value"] is not None for row in rows) else 1


def _tabulate(args: argparse.Namespace, targets: Sequence[Any]) -> list[dict[str, Any]]:
    sources = (
        feature_files(args.source, "source", encoder_folders=True)
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
            encoders.add(loaded(task).encoder)
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
        "Larger means better transfer. Compare a metric across encoders or "
        "sources, "
        "not with other metrics."
    )


def _counts(words: Sequence[str]) -> list[tuple[str, int]]:
    return [(word, words.count(word)) for word in dict.fromkeys(words)]


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".csv":
        write_atomically(path, lambda stream: stream.write(as_csv(rows).encode()))
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_atomically(
        path, lambda stream: pq.write_table(pa.Table.from_pylist(rows), stream)
    )


# -- evaluate --------------------------------------------------------------------------


def evaluate(args: argparse.Namespace) -> int:
    if not args.scores and not args.features:
        raise ValueError(
            "scores: name a scan or tables of scores, or --features to compute "
            "scores "
            "and probes of them"
        )
    if args.features and args.truth:
        raise ValueError(
            "truth: found it and features, whose probes are the truth; give one of them"
        )
    if args.test and not args.features:
        raise ValueError("test: features to test on go with --features to learn from")
    check_statistic(args.statistic)
    check_options(args.over, args.replicates, args.interval)
    out = out_folder(args.out)
    if out is not None:
        check_writable(out / "evaluation.tta", "out", (".tta",))
    quiet = args.json or args.csv or args.markdown
    scores: list[Any] = list(args.scores)
    truth, rows = args.truth, []
    if args.features:
        truth, learned = _probed(args)
        rows = _tabulate(args, [(task.name, task) for task in learned])
        scores.append(rows)
    with bar("bootstrap", quiet) as progress:
        result = run_evaluation(
            scores[0] if len(scores) == 1 else scores,
            truth,
            truth_column=args.truth_column,
            parameters=args.parameters
            or {name: ready.parameters for name, ready in ENCODERS.items()},
            over=args.over,
            replicates=args.replicates,
            interval=args.interval,
            key=jax.random.key(args.seed),
            progress=progress,
        )
    if args.target is not None:
        result.table(
            args.statistic, args.target
        )  # refuses an unknown one before anything is written
    if out is not None:
        _save(result, out, args.statistic, rows, truth if args.features else [])
    _show_evaluation(args, result)
    if out is not None and not quiet:
        print(written_to(out))
    return 0


def _probed(args: argparse.Namespace) -> tuple[list[dict[str, Any]], list[Task]]:
    """Truth rows, and the parts of the tasks that may be scored."""
    tasks = _loaded(args.features, "features")
    test = None
    if args.test:
        held = {(task.encoder, task.name): task for task in _loaded(args.test, "test")}
        for task in tasks:
            if (task.encoder, task.name) not in held:
                raise ValueError(
                    f"test: there is no file for {task.name!r} of encoder "
                    f"{task.encoder!r}; names have to be the same"
                )
        test = [held[task.encoder, task.name] for task in tasks]
    with bar("probes", args.json or args.csv or args.markdown) as progress:
        if progress is not None:
            progress(f"{len(tasks)} tasks", 0.0)
        rows, learned = ground_truth(
            tasks, test, by=args.by, key=jax.random.key(args.seed)
        )
    good = [row for row in rows if not row["reason"]]
    for row in rows:
        if row["reason"]:
            print(f"tta-jax: left out: {row['reason']}", file=sys.stderr)
    if not good:
        raise ValueError("features: no task can be probed")
    return good, [
        task for task, row in zip(learned, rows, strict=True) if not row["reason"]
    ]


def _loaded(places: list[str], argument: str) -> list[Task]:
    tasks = []
    for name, load in feature_files(places, argument, encoder_folders=True):
        try:
            task = dataclasses.replace(load(), name=name)
        except ValueError as error:
            print(f"tta-jax: left out: {one_line(error)}", file=sys.stderr)
            continue
        if not task.encoder:
            raise ValueError(
                f"{argument}: {name!r} does not tell its encoder; extract it with "
                "tta-jax, or put the files of each encoder in a "
                "folder of its own"
            )
        tasks.append(task)
    if not tasks:
        raise ValueError(f"{argument}: there is no file that can be read")
    return tasks


def _show_evaluation(args: argparse.Namespace, result: Evaluation) -> None:
    if args.json:
        print(as_json(result.to_dict() | {"notes": result.notes(args.statistic)}))
        return
    table = result.table(args.statistic, args.target)
    if args.csv:
        print(as_csv(table), end="")
        return

    def figure(value, digits):
        return "" if not np.isfinite(value) else f"{value:.{digits}f}"

    shown = []
    for row in table:
        cells = {"score": row["score"] + MARKS.get(row["kind"], "")}
        cells[args.statistic] = figure(row[args.statistic], 3)
        if args.target is None:
            cells["interval"] = (
                f"{row['low']:.2f} to {row['high']:.2f}"
                if np.isfinite(row["low"])
                else ""
            )
        cells |= {
            name.replace("_1", "").replace("_", " "): figure(row[name], 4)
            for name in ("regret_1", "relative_accuracy")
            if name in row and name != args.statistic
        }
        if args.per_target and args.target is None:
            values = result.estimates[row["score"]][args.statistic].per_target
            cells |= {
                f"on {target}": figure(value, 2)
                for target, value in zip(result.targets, values, strict=True)
            }
        shown.append(cells | {"blanks": str(row["blanks"] or "")})
    if not any(cells["blanks"] for cells in shown):
        shown = [
            {name: v for name, v in cells.items() if name != "blanks"}
            for cells in shown
        ]
    where = f"{len(result.targets)} targets" if args.target is None else args.target
    title = f"{where}, {len(result.models)} models; truth: {result.truth_name}"
    if args.markdown:
        print(as_markdown(shown, title))
        return
    print_table(shown, title, left=("score",))
    print(
        "* baseline: always in the table"
        + (
            "; (pool): depends on which models are in it"
            if "pooled" in result.kinds.values()
            else ""
        )
    )
    if args.target is None:
        print("\n" + "\n".join(result.notes(args.statistic)))


def _save(
    result: Evaluation, out: Path, statistic: str, scores: list[dict], truth: list[dict]
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    result.save(out / "evaluation.tta")
    write_atomically(
        out / "summary.txt",
        lambda stream: stream.write((result.summary(statistic) + "\n").encode()),
    )
    _write_rows(out / "table.csv", result.table(statistic))
    for name, rows in (("scores.csv", scores), ("truth.csv", truth)):
        if rows:
            _write_rows(out / name, rows)
    try:
        from tta_jax.report.figures import evaluation_figure

        evaluation_figure(result, statistic, out / "figure.png")
    except ValueError as error:
        print(f"tta-jax: no figure: {error}", file=sys.stderr)
