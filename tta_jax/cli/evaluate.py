"""`tta-jax evaluate`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tta_jax._internal.files import check_writable, write_atomically
from tta_jax._internal.tables import write_csv
from tta_jax._internal.text import one_line
from tta_jax.cli._feature_files import check_columns, feature_files
from tta_jax.cli._terminal import (
    as_json,
    as_markdown,
    bar,
    out_folder,
    print_table,
    written_to,
)
from tta_jax.cli.metrics import tabulate_tasks, write_rows
from tta_jax.data.encoders import ENCODERS
from tta_jax.evaluation.evaluate import MARKS, Evaluation
from tta_jax.evaluation.evaluate import evaluate as run_evaluation
from tta_jax.evaluation.rank_statistics import check_options, check_statistic
from tta_jax.probes import ground_truth
from tta_jax.tasks.task import Task


def evaluate(args: argparse.Namespace) -> int:
    if not args.scores and not args.features:
        raise ValueError(
            "scores: name a scan or tables of scores, or --features to compute scores "
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
        rows = tabulate_tasks(args, [(task.name, task) for task in learned])
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
    check_columns(args, [*args.features, *(args.test or ()), *(args.source or ())])
    tasks = _loaded(args, args.features, "features")
    test = None
    if args.test:
        held = {
            (task.encoder, task.name): task for task in _loaded(args, args.test, "test")
        }
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


def _loaded(args: argparse.Namespace, places: list[str], argument: str) -> list[Task]:
    tasks = []
    for name, load in feature_files(args, places, argument, encoder_folders=True):
        try:
            task = dataclasses.replace(load(), name=name)
        except ValueError as error:
            print(f"tta-jax: left out: {one_line(error)}", file=sys.stderr)
            continue
        if not task.encoder:
            raise ValueError(
                f"{argument}: {name!r} does not tell its encoder; extract it with "
                "tta-jax, or put the files of each encoder in a folder of its own"
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
        print(write_csv(table), end="")
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
    write_rows(out / "table.csv", result.table(statistic))
    for name, rows in (("scores.csv", scores), ("truth.csv", truth)):
        if rows:
            write_rows(out / name, rows)
    try:
        from tta_jax.report.figures.scores import evaluation_figure

        evaluation_figure(result, statistic, out / "figure.png")
    except ValueError as error:
        print(f"tta-jax: no figure: {error}", file=sys.stderr)
