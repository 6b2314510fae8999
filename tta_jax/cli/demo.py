"""`tta-jax demo`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import jax
import numpy as np

from tta_jax.analysis.analyze import analyze as run_analysis
from tta_jax.analysis.analyze import evaluation_parts
from tta_jax.analysis.result import Analysis
from tta_jax.cli._terminal import as_json, bar, print_table
from tta_jax.config import Config
from tta_jax.tasks.task import Task

_DEMO_ITEMS, _DEMO_EPOCHS = 300, 15


def demo(args: argparse.Namespace) -> int:
    """Digits 0-4 train the encoder; other digits and altered ones are the targets."""
    from tta_jax.data import digits, extract_features
    from tta_jax.data.encoders.small_cnn import train_cnn
    from tta_jax.probes import linear_probe

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
        f"Source: {len(train)} handwritten digits 0-4 (scikit-learn, 28x28). Training "
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
        f"Targets: {_DEMO_ITEMS} digits each, {_DEMO_ITEMS // 2} labels to learn from, "
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
    from tta_jax.report.figures.bounds import ranking_figure

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
            f"{worst_file}\n{time.perf_counter() - begin:.0f} s in all"
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
        "directed": bound.directed,
        "oscillation": bound.oscillation,
        "theorem": bound.theorem,
        "linear probe": probe,
        "guessing": bound.prior_entropy,
    }
