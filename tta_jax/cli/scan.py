"""`tta-jax scan`."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from tta_jax._internal.tables import read_csv
from tta_jax.cli._feature_files import check_columns, feature_files
from tta_jax.cli._terminal import as_json, config_of, scan_progress
from tta_jax.core.heads import SoftmaxHead
from tta_jax.data.io.features import load_head
from tta_jax.scans import distributed
from tta_jax.scans.api import prepare
from tta_jax.tasks.task import Task

_ROLES = ("source", "target")


def scan(args: argparse.Namespace) -> int:
    with contextlib.suppress(
        RuntimeError
    ):  # called from a program that computes with jax already
        distributed.use_cores()
    if args.coordinator or args.distributed:
        distributed.join_processes(args.coordinator, args.processes, args.process_id)
    elif args.processes is not None or args.process_id is not None:
        raise ValueError(
            "coordinator: give it with processes and process-id, HOST:PORT of the "
            "first process"
        )
    known: dict[Path, Callable[[], Task]] = {}
    check_columns(args, [*args.sources, *(args.targets or ())])
    sources = feature_files(args, args.sources, "sources", known)
    targets = (
        feature_files(args, args.targets, "targets", known) if args.targets else sources
    )
    if not args.out and not args.dry_run:
        raise ValueError("out: name a folder for the rows, or ask for --dry-run")
    with scan_progress(args.json or jax.process_index() > 0) as progress:
        job = prepare(
            sources,
            targets,
            pairs=_pairs(args.pairs),
            refine=args.refine,
            config=config_of(args),
            key=jax.random.key(args.seed),
            heads=_heads(args.heads),
            arrays=args.arrays,
            memory=None if args.memory is None else int(args.memory * 1e9),
            progress=progress,
        )
        found = job.forecast() if args.dry_run else None
        result = None if args.dry_run else job.run(args.out)
    if found is not None:
        print(as_json(found) if args.json else _forecast(found))
    elif result is not None and jax.process_index() == 0:
        print(
            as_json(result.facts())
            if args.json
            else (
                f"{result.summary()}\n\nRows in {args.out}; look at them with: "
                f"tta-jax rank {args.out}"
            )
        )
    return 0


def _pairs(where: str | None) -> list[tuple[str, str]] | None:
    if where is None:
        return None
    path = Path(where)
    if not path.is_file():
        raise ValueError(f"pairs: there is no file {where!r}")
    rows, _ = read_csv(path, "pairs")
    if not all(isinstance(row.get(k), str) for row in rows for k in _ROLES):
        raise ValueError(
            f"pairs: {where!r} is not a CSV file with columns source,target"
        )
    found = [(str(row["source"]), str(row["target"])) for row in rows]
    if not found or any(not s or not t for s, t in found):
        raise ValueError(f"pairs: {where!r} lists no pairs, or one without a name")
    return found


def _heads(where: str | None) -> dict[str, SoftmaxHead] | None:
    if where is None:
        return None
    if not Path(where).is_dir():
        raise ValueError(f"heads: there is no folder {where!r}")
    return {
        path.stem: SoftmaxHead(*load_head(str(path)))
        for path in sorted(Path(where).glob("*.npz"))
    }


def _forecast(found: dict[str, Any]) -> str:
    lines = [
        f"{found['pairs']:,} pairs of {found['sources']} sources and "
        f"{found['targets']} targets, {found['impossible']:,} of them "
        f"impossible; {found['refined']:,} to refine",
        (
            f"{found['compilations']} programs to compile, for {len(found['buckets'])} "
            "shapes of pairs (source, target):"
        ),
    ]

    def size(shape):
        return f"K {shape['classes']}, d {shape['dim']}, {shape['items']} items"

    for row in found["buckets"]:
        lines.append(
            f"  {row['pairs']:>11,} pairs   {size(row['source'])};  "
            f"{size(row['target'])}   "
            f"{row['pairs_per_second']:,.0f} pairs/s   {row['megabytes']:,.0f} MB"
        )
    lines += [
        f"memory on each of {found['devices']} devices: {found['megabytes']:,.0f} MB "
        f"of profiles and work; {found['budget_megabytes']:,.0f} MB may be used",
        f"time: compilation {_clock(found['compile_seconds'])}, profiles "
        f"{_clock(found['profile_seconds'])}, screening "
        f"{_clock(found['screen_seconds'])}, refining "
        f"{_clock(found['refine_seconds'])}; measured on one pair of each shape",
    ]
    lines += [
        f"impossible: {reason} ({number})"
        for reason, number in found["reasons"].items()
    ]
    return "\n".join(lines)


def _clock(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
