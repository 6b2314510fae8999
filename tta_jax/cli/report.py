"""`report`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tta_jax._internal.files import check_writable
from tta_jax.cli._terminal import as_json
from tta_jax.data.io.features import load_task
from tta_jax.report.html.report import find
from tta_jax.report.html.report import report as page_of


def report(args: argparse.Namespace) -> int:
    if (args.source is None) != (args.target is None):
        raise ValueError(
            f"{'target' if args.target is None else 'source'}: give both --source and "
            "--target, or neither"
        )
    out = _out(args.path, args.out)
    found = find(args.path)
    check_writable(out, "out", (".html", ".htm"))
    tasks = {
        name: load_task(where, name)
        for name in ("source", "target")
        if (where := getattr(args, name)) is not None
    }
    page = page_of(found, title=args.title, top=args.top, **tasks)
    for name, reason in found.left_out.items():
        print(f"tta-jax: left out: {name}: {reason}", file=sys.stderr)
    size = page.write(out)
    if args.json:
        facts = {
            "kind": found.kind,
            "title": page.title,
            "figures": page.figures,
            "tables": page.tables,
        }
        print(
            as_json(
                {"out": str(out), "bytes": size, **facts, "left_out": found.left_out}
            )
        )
    else:
        print(
            f"{out}: {page.figures} figures and {page.tables} tables in one file of "
            f"{size / 1e6:.1f} MB"
        )
    return 0


def _out(path: str, out: str | None) -> Path:
    """Where the page goes: in a folder, beside a file, or as told."""
    if out is not None:
        return Path(out)
    if "://" in path:
        raise ValueError(f"out: name a file for the page of {path!r}")
    return (
        Path(path) / "report.html"
        if Path(path).is_dir()
        else Path(path).with_suffix(".html")
    )
