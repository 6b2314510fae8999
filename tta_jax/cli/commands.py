"""What each command does, once its words are parsed."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import jax
import numpy as np

from tta_jax.analysis import Analysis, evaluation_parts
from tta_jax.analysis import analyze as run_analysis
from tta_jax.archive import load as load_result
from tta_jax.archive import write_atomically
from tta_jax.cli.terminal import (
    as_json,
    bar,
    config_of,
    out_folder,
    print_table,
    written_to,
)
from tta_jax.config import Config
from tta_jax.data.features import FORMATS, load_features, load_head, load_task, task_of
from tta_jax.evaluation import Evaluation
from tta_jax.head import SoftmaxHead
from tta_jax.subdivision import subdivided
from tta_jax.task import Task, first_copies


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda stream: stream.write(text.encode()))


def analyze(args: argparse.Namespace) -> int:
    config = config_of(args)
    source, target = load_task(args.source, "source"), load_task(args.target, "target")
    head = SoftmaxHead(*load_head(args.head)) if args.head else None
    if args.subdivide is not None:
        if head is not None:
            raise ValueError(
                "subdivide: the head knows the source's own classes only; leave "
                "--head "
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
        from tta_jax.report.figures import analysis_figure

        analysis_figure(result, out / "figure.png")
    except ValueError as error:
        print(f"tta-jax: no figure: {error}", file=sys.stderr)


def info(args: argparse.Namespace) -> int:
    path = Path(args.file)
    if path.suffix not in FORMATS and not path.is_dir() and "," not in args.file:
        result = load_result(path)
        assert isinstance(result, (Analysis, Evaluation))  # which are all that is saved
        print(as_json(result.to_dict()) if args.json else result.summary())
        return 0
    found = load_features(args.file, "file")
    task = task_of(found, args.file, "file")
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
        "exact copies": int((first_copies(features) != np.arange(len(task))).sum()),
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
            else f"{name:<22} {'-' if value is None else value}"
        )
    print(f"{'classes':<22} {len(classes)}")
    for name, count in list(classes.items())[:30]:
        print(f"  {name:<20} {count}")
    if len(classes) > 30:
        print(f"  ... and {len(classes) - 30} more")
    for name in ("encoder", "preprocessing", "data", "split"):
        if provenance.get(name) is not None:
            print(f"{name:<22} {provenance[name]}")
    if provenance.get("skipped"):
        print(f"{'skipped items':<22} {len(provenance['skipped'])} (see --json)")
    return 0


_DEMO_ITEMS, _DEMO_EPOCHS = 300, 15


def demo(args: argparse.Namespace) -> int:
    """Digits 0-4 train the encoder; other digits and altered ones are the targets."""
    from tta_jax.data import digits, extract_features
    from tta_jax.data.cnn import train_cnn
    from tta_jax.probe import linear_probe

    begin = time.perf_counter()
    images, labels = digits.load_digits()
    rng = np.random.default_rng(args.seed)
    low, high = (
        rng.permutation(np.flatnonzero(labels < 5)),
        rng.permutation(np.flatnonzero(labels >= 5)),
    )
    train, rest, high = low[:-_DEMO_ITEMS], low[-_DEMO_ITEMS:], high[:_DEMO_ITEMS]
    say = (lambda *_: None) if args.json else (lambda text: print(text, flush=True))
    say(
        f"Source: {len(train)} handwritten digits 0-4 (scikit-learn, 28x28). "
        "Training "
        "the paper's small CNN on them ..."
    )
    with bar("training", args.json) as progress:
        tell = (
            (lambda e, loss: progress(f"loss {loss:.3f}", (e + 1) / _DEMO_EPOCHS))
            if progress
            else None
        )
        model = train_cnn(
            images[train],
            labels[train],
            epochs=_DEMO_EPOCHS,
            seed=args.seed,
            on_epoch=tell,
        )

    def encode(pictures):
        return extract_features(model, pictures, batch_size=500, cache=False).features

    source = Task.from_arrays(encode(images[train]), labels[train], name="digits 0-4")
    seen = images[rest]
    variants = {
        "digits 0-4, unseen": (seen, labels[rest]),
        "0-4 noisy": (digits.noisy(seen, args.seed), labels[rest]),
        "0-4 inverted": (digits.inverted(seen), labels[rest]),
        "0-4 rotated": (digits.rotated(seen), labels[rest]),
        "digits 5-9": (images[high], labels[high]),
        "digits 5-9 rotated": (digits.rotated(images[high]), labels[high]),
    }
    variants["0-4 shuffled labels"] = (seen, rng.permutation(labels[rest]))
    key, config = jax.random.key(args.seed), Config(holdout=0.5)
    say(
        f"Targets: {_DEMO_ITEMS} digits each, {_DEMO_ITEMS // 2} labels to learn "
        "from, "
        "the others held out."
    )
    rows: list[tuple[Analysis, float]] = []
    with bar("analysing", args.json) as progress:
        for number, (name, (pictures, classes)) in enumerate(variants.items()):
            if progress is not None:
                progress(name, number / len(variants))
            target = Task.from_arrays(encode(pictures), classes, name=name)
            result = run_analysis(source, None, target, config, key)
            _, _, learn, held = evaluation_parts(source, target, config, key)[0]
            rows.append(
                (result, linear_probe(target.take(learn), target.take(held)).loss)
            )
    rows.sort(key=lambda row: -(row[0].score or 0.0))
    out = Path(args.out)
    table = [_demo_row(result, probe) for result, probe in rows]
    if args.json:
        print(as_json(table))
    else:
        print_table(table, "Held-out figures, nats (score and accuracy are shares)")
    from tta_jax.report.figures import ranking_figure

    ranking_figure(
        [result for result, _ in rows],
        [probe for _, probe in rows],
        out / "ranking.png",
    )
    for result, _ in rows:
        result.save(out / _file_name(result))
    if not args.json:
        worst_file = out / _file_name(rows[-1][0])
        best, worst = rows[0][0], rows[-1][0]
        print(
            "\nscore is the share of label uncertainty that the transferred "
            "classifier removes on held-out items:"
            f" {best.target_name} transfers best, {worst.target_name} worst.\n"
            f"Figure: {out / 'ranking.png'}   one analysis in full: tta-jax info "
            f"{worst_file}\n"
            f"{time.perf_counter() - begin:.0f} s in all"
        )
    return 0 if all(result.holds for result, _ in rows) else 1


def _file_name(result: Analysis) -> str:
    return result.target_name.replace(" ", "_").replace(",", "") + ".tta"


def _demo_row(result: Analysis, probe: float) -> dict:
    assert result.held_out is not None
    bound = result.held_out.bound
    return {
        "target": result.target_name,
        "score": result.score,
        "accuracy": bound.target_accuracy,
        "target loss": bound.target_loss,
        "tight": bound.tight,
        "source loss": bound.transformed_source_loss,
        "label mismatch": bound.label_mismatch,
        "mismatch": bound.tight - bound.transformed_source_loss,
        "oscillation": bound.oscillation,
        "theorem": bound.theorem,
        "linear probe": probe,
        "guessing": bound.prior_entropy,
    }
