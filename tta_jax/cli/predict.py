"""`tta-jax predict`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tta_jax._internal.files import check_writable
from tta_jax._internal.tables import write_csv
from tta_jax.cli._raw_data import extraction_options, quiet_pictures, raw_data
from tta_jax.cli._terminal import as_json, bar
from tta_jax.cli.metrics import write_rows
from tta_jax.data.examples import Examples
from tta_jax.data.extraction.extract import extract_features
from tta_jax.selection.choice import load_classifier


def predict(args: argparse.Namespace) -> int:
    if args.out is not None:
        check_writable(args.out, "out", (".csv", ".parquet"))
    classifier = load_classifier(args.classifier)
    examples = raw_data(args)
    quiet_pictures()
    labels, names = examples.labels, examples.class_names
    known = examples.labelled
    # Of the items alone: their classes may be others than those that were learned.
    items = Examples(
        examples.items,
        examples.modality,
        name=examples.name,
        describe=examples.describe,
    )
    with bar(f"{examples.name} under {classifier.encoder}", args.json) as progress:
        found = extract_features(
            classifier.loaded(), items, progress=progress, **extraction_options(args)
        )
    log_p = classifier.probe.log_probabilities(np.asarray(found.features))
    skipped = {row["item"]: row["reason"] for row in found.provenance["skipped"]}
    kept = [i for i in range(len(items)) if i not in skipped]
    best = log_p.argmax(1)
    rows: list[dict[str, Any]] = []
    place = dict(zip(kept, range(len(kept)), strict=True))
    for i in range(len(items)):
        row: dict[str, Any] = {"item": examples.describe(i)}
        if i in place:
            k = int(best[place[i]])
            row["class"] = classifier.class_names[k]
            row["probability"] = float(np.exp(log_p[place[i], k]))
        else:
            row["class"], row["probability"] = None, None
        if args.probabilities:
            for k, name in enumerate(classifier.class_names):
                row[f"p {name}"] = (
                    float(np.exp(log_p[place[i], k])) if i in place else None
                )
        rows.append(row)
    if args.out is not None:
        write_rows(Path(args.out), rows)
    if args.json:
        print(as_json(rows))
    elif args.out is None:
        print(write_csv(rows), end="")
    else:
        print(f"{args.out}: {len(rows)} items")
    for i, why in list(skipped.items())[:5]:
        print(f"tta-jax: left blank: {examples.describe(i)} {why}", file=sys.stderr)
    if labels is not None and names is not None and not args.json:
        judged = [i for i in kept if known is None or known[i]]
        right = sum(
            classifier.class_names[int(best[place[i]])] == names[labels[i]]
            for i in judged
        )
        print(
            f"tta-jax: right for {right} of {len(judged)} labelled items "
            f"({right / max(len(judged), 1):.1%})",
            file=sys.stderr,
        )
    return 0
