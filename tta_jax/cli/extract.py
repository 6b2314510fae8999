"""`tta-jax extract`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from tta_jax._internal.files import check_writable, write_atomically
from tta_jax.cli._raw_data import model_options, quiet_pictures, raw_data
from tta_jax.cli._terminal import as_json, bar
from tta_jax.data import Features, extract_features, load_encoder


def extract(args: argparse.Namespace) -> int:
    out = Path(args.out)
    if out.exists() and out.resolve() == Path(args.data).resolve():
        raise ValueError(f"out: {args.out!r} is the data; write the features elsewhere")
    if args.head is not None:
        check_writable(args.head, "head", (".npz",))
        if Path(args.head).resolve() in (
            out.resolve(),
            out.resolve().with_name(f"{out.stem}.meta.npz"),
        ):
            raise ValueError(
                f"head: {args.head!r} is a file of the features; name another"
            )
    encoder = load_encoder(args.encoder, args.weights, **model_options(args))
    if args.head is not None and encoder.head is None:
        raise ValueError(
            f"head: encoder {args.encoder!r} has no classifier of its own; leave "
            "--head out"
        )
    examples = raw_data(args)
    if args.limit is not None:
        examples = examples.limit(args.limit, args.seed)
    # Before the work, which would be for nothing if it cannot be had.
    head = None if args.head is None or encoder.head is None else encoder.head()
    quiet_pictures()
    try:
        with bar(f"{examples.name} under {encoder.name}", args.json) as progress:
            features = extract_features(
                encoder,
                examples,
                batch_size=args.batch_size,
                on_error=args.on_error,
                cache=args.cache,
                out=out,
                progress=progress,
            )
    except KeyboardInterrupt:
        kept = (
            "what was computed is kept, the same command goes on from there"
            if args.cache
            else "nothing was kept"
        )
        print(f"tta-jax: interrupted, {out} was not written; {kept}", file=sys.stderr)
        return 1
    if args.head is not None and head is not None:
        weight, bias = head
        write_atomically(
            Path(args.head), lambda stream: np.savez(stream, weight=weight, bias=bias)
        )
    print(
        as_json(_facts(features, out))
        if args.json
        else _summary(features, out, args.head)
    )
    return 0


def _facts(features: Features, out: Path) -> dict:
    classes = None if features.class_names is None else len(features.class_names)
    return {
        "file": str(out),
        "items": len(features),
        "features": int(features.features.shape[1]),
        "classes": classes,
        "labelled": _labelled(features),
        "groups": None if features.groups is None else len(np.unique(features.groups)),
        "provenance": features.provenance,
    }


def _labelled(features: Features) -> int:
    """How many items have a label."""
    if features.labels is None:
        return 0
    known = features.labelled
    return len(features) if known is None else int(np.asarray(known).sum())


def _summary(features: Features, out: Path, head: str | None) -> str:
    facts = _facts(features, out)
    classes = "unlabelled" if features.labels is None else f"{facts['classes']} classes"
    lines = [f"{out}: {facts['items']} items, {facts['features']} features, {classes}"]
    if 0 < facts["labelled"] < facts["items"]:
        lines[0] += f", {facts['items'] - facts['labelled']} items unlabelled"
    if facts["groups"] is not None:
        lines[0] += f", {facts['groups']} groups"
    skipped = features.provenance.get("skipped", [])
    if skipped:
        lines.append(
            f"skipped {len(skipped)} items, recorded in the file's provenance:"
        )
        lines += [f"  {s['what']} {s['reason']}" for s in skipped[:5]] + (
            ["  ..."] if len(skipped) > 5 else []
        )
    gone = features.provenance.get("classes_without_sample")
    if gone:
        lines.append(
            f"left out {len(gone)} classes without a sample: "
            f"{', '.join(gone[:10])}{', ...' if len(gone) > 10 else ''}"
        )
    if head:
        lines.append(f"{head}: the encoder's own classifier (analyze --head)")
    return "\n".join(lines)
