"""`tta-jax analyze`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jax

from tta_jax._internal.files import write_atomically
from tta_jax.analysis.analyze import analyze as run_analysis
from tta_jax.analysis.result import Analysis
from tta_jax.cli._feature_files import check_columns, table_columns
from tta_jax.cli._terminal import as_json, bar, config_of, out_folder, written_to
from tta_jax.core.heads import SoftmaxHead
from tta_jax.data.io.features import load_head, load_task
from tta_jax.tasks.subdivision import subdivided


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda stream: stream.write(text.encode()))


def analyze(args: argparse.Namespace) -> int:
    config = config_of(args)
    check_columns(args, (args.source, args.target))
    source, target = (
        load_task(where, role, **table_columns(args, where))
        for role, where in (("source", args.source), ("target", args.target))
    )
    head = SoftmaxHead(*load_head(args.head)) if args.head else None
    if args.subdivide is not None:
        if head is not None:
            raise ValueError(
                "subdivide: the head knows the source's own classes only; leave --head "
                "or --subdivide out"
            )
        source = subdivided(source, args.subdivide)
    out = out_folder(args.out)
    with bar(f"{source.name} -> {target.name}", args.json) as progress:
        result = run_analysis(
            source, head, target, config, jax.random.key(args.seed), progress=progress
        )
    text = as_json(result.to_dict())
    print(text if args.json else result.summary())
    if out is not None:
        _save(result, out, text)
        if not args.json:
            print(written_to(out))
    return 0 if result.holds else 1


def _save(result: Analysis, out: Path, text: str) -> None:
    result.save(out / "analysis.tta")
    _write_text(out / "result.json", text + "\n")
    _write_text(out / "summary.txt", result.summary() + "\n")
    try:
        from tta_jax.report.figures.bounds import analysis_figure

        analysis_figure(result, out / "figure.png")
    except ValueError as error:
        print(f"tta-jax: no figure: {error}", file=sys.stderr)
