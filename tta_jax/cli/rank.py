"""`tta-jax rank`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from tta_jax._internal.tables import write_csv
from tta_jax.cli._terminal import as_json, as_markdown, print_table
from tta_jax.scans.result import ScanResult

_SHOWN = (
    "rank",
    "encoder",
    "source",
    "target",
    "stage",
    "score",
    "target_loss",
    "target_accuracy",
    "tight",
    "relatedness",
    "reweighted_source_loss",
    "label_mismatch",
    "prior_entropy",
    "probe_loss",
    "probe_accuracy",
)
_WORDS = ("encoder", "source", "target", "stage")
_SHORT = {
    "target_loss": "loss",
    "target_accuracy": "accuracy",
    "reweighted_source_loss": "source loss",
    "label_mismatch": "mismatch",
    "prior_entropy": "guessing",
    "probe_loss": "probe loss",
    "probe_accuracy": "probe acc.",
}


def rank(args: argparse.Namespace) -> int:
    result = ScanResult.load(args.folder)
    rows = result.rank(
        target=args.target, source=args.source, by=args.by, top=args.top or None
    )
    if args.json:
        print(as_json(rows))
        return 0
    if not rows:
        failed = result.failures(1)
        print(
            f"no pair has figures: {failed[0]['reason']}"
            if failed
            else "no pair has figures yet"
        )
        return 1
    if args.csv:
        print(write_csv(rows), end="")
        return 0
    shown = [
        name
        for name in dict.fromkeys([*_SHOWN, args.by])
        if any(row[name] not in ("", None) for row in rows)
    ]
    # What is the same in every row stands in the title.
    fixed = [
        name
        for name in ("encoder", "source", "target")
        if name in shown and len({row[name] for row in rows}) == 1 and len(rows) > 1
    ]
    title = ", ".join(f"{name} {rows[0][name]}" for name in fixed)
    table = [
        {
            _SHORT.get(name, name): _cell(row, name)
            for name in shown
            if name not in fixed
        }
        for row in rows
    ]
    if args.markdown:
        print(as_markdown(table, title))
        return 0
    print_table(table, title, left=_WORDS)
    print(
        (
            "losses in nats, held out; guessing: what the class shares alone cost; "
            "score = 1 - loss / guessing; relatedness = 1 - its "
            "directed bound / guessing"
        ),
        file=sys.stderr,
    )
    return 0


def _cell(row: dict[str, Any], name: str) -> str:
    value = row[name]
    if value is None:
        return ""
    if name == "score" and row["score_low"] is not None:
        return f"{value:.3f} ({row['score_low']:.3f} to {row['score_high']:.3f})"
    if name.endswith("accuracy"):
        return f"{value:.1%}"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
