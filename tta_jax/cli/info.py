"""`tta-jax info`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from tta_jax._internal.serialization import load as load_result
from tta_jax._internal.text import printable
from tta_jax.analysis.result import Analysis
from tta_jax.cli._feature_files import check_columns, table_columns
from tta_jax.cli._terminal import as_json
from tta_jax.data.io.features import FORMATS, features_to_task, load_features
from tta_jax.evaluation.evaluate import Evaluation
from tta_jax.selection.choice import Choice
from tta_jax.selection.classifier import EncoderClassifier
from tta_jax.tasks.splits import first_duplicate_index


def info(args: argparse.Namespace) -> int:
    path = Path(args.file)
    if path.suffix not in FORMATS and not path.is_dir() and "," not in args.file:
        result = load_result(path)
        # Which are all that is saved.
        assert isinstance(result, (Analysis, Choice, EncoderClassifier, Evaluation))
        print(as_json(result.to_dict()) if args.json else result.summary())
        return 0
    check_columns(args, (args.file,))
    found = load_features(args.file, "file", **table_columns(args, args.file))
    task = features_to_task(found, args.file, "file")
    features = np.asarray(task.features)
    facts = {
        "name": task.name,
        "items": len(task),
        "features": task.dim,
        "labelled": int(np.asarray(task.labelled).sum()),
        "classes": {
            str(name): int(count)
            for name, count in zip(task.class_names, task.counts, strict=True)
        },
        "groups": None
        if task.groups is None
        else len(np.unique(np.asarray(task.groups))),
        "constant features": int((features.max(axis=0) == features.min(axis=0)).sum()),
        "exact copies": int(
            (first_duplicate_index(features) != np.arange(len(task))).sum()
        ),
        "prior entropy (nats)": float(-sum(p * np.log(p) for p in task.prior if p > 0)),
        "feature mean": float(features.mean(dtype=np.float64)),
        "feature deviation": float(features.std(axis=0, dtype=np.float64).mean()),
        "provenance": found.provenance or None,
    }
    if args.json:
        print(as_json(facts))
        return 0
    classes, provenance = facts.pop("classes"), facts.pop("provenance") or {}
    for name, value in facts.items():
        print(
            f"{name:<22} {value:.4g}"
            if isinstance(value, float)
            else f"{name:<22} {'-' if value is None else printable(value)}"
        )
    print(f"{'classes':<22} {len(classes)}")
    for name, count in list(classes.items())[:30]:
        print(f"  {printable(name):<20} {count}")
    if len(classes) > 30:
        print(f"  ... and {len(classes) - 30} more")
    for name in ("encoder", "preprocessing", "data", "split"):
        if provenance.get(name) is not None:
            print(f"{name:<22} {printable(provenance[name])}")
    if provenance.get("skipped"):
        print(f"{'skipped items':<22} {len(provenance['skipped'])} (see --json)")
    return 0
