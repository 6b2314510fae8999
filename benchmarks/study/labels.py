"""Few target labels, and none: how figures degrade, and what can be said before the
first label.

`units_free`: every trained encoder and target, no label looked at: the scores of
`tta.label_free`, an analysis with pseudo-labels, and the truth as in `pairs`.
`units_few`: some frozen encoders and every target, 2 to 50 labels a class: the loss of
`h'''` and of a linear probe on the items that are judged in `pairs`, what the few
labels themselves say of it, and what they say of a ridge probe without the source.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks.study.features import Grid
from benchmarks.study.pairs import truth
from benchmarks.study.settings import Pair
from benchmarks.study.store import Unit

_VERSION = 3  # raised whenever a score without labels changes
_VERSION_FEW = 3  # raised whenever figures of few labels change


def units_free(grid: Grid) -> Iterator[Unit]:
    settings = grid.settings
    for group in settings.trained:
        # Features cannot tell that their labels were shuffled: no score without labels
        # is judged on that.
        old = [t for t in group.targets if settings.recipe(t).labels == "given"]
        for target in old + group.fresh:  # pairs of a target share compiled programs
            for source in group.sources:
                pair = group.pair(source, target)
                depends = {"version": _VERSION}
                yield grid.unit(
                    "free",
                    pair,
                    partial(_free, grid, pair),
                    depends=depends,
                    fresh=target in group.fresh,
                )


def _free(grid: Grid, pair: Pair) -> list[dict[str, Any]]:
    import tta_jax as tta

    key = grid.key()
    known, whole = grid.source(pair), grid.target(pair)
    row: dict[str, Any] = {"items": len(whole), **truth(*grid.halves(pair, key), key)}
    blind = tta.Task.from_arrays(np.asarray(whole.features), None, name=pair.target)
    for score in tta.label_free(blind, known, num_classes=whole.num_classes, key=key):
        row[f"free_{score.metric}"], row[f"seconds_{score.metric}"] = (
            score.value,
            score.seconds,
        )
    begin = time.perf_counter()
    bound = tta.analyze(known, None, blind, tta.Config(bootstrap=0), key).bound
    row["seconds_pseudo"] = time.perf_counter() - begin
    # Larger is better, and on the scale of guessing the pseudo-labels.
    row["free_pseudo_score"] = (
        1 - bound.target_loss / bound.prior_entropy if bound.prior_entropy else None
    )
    row["free_pseudo_oscillation"] = (
        -bound.oscillation / bound.prior_entropy if bound.prior_entropy else None
    )
    row["free_pseudo_transport"] = -bound.oscillation_wasserstein
    return [row]


def units_few(grid: Grid) -> Iterator[Unit]:
    settings = grid.settings
    for group in settings.frozen:
        for encoder in group.few:
            for target in group.targets:
                pair = group.pair(encoder, target)
                depends = {
                    "labels": settings.few,
                    "metrics": settings.few_metrics,
                    "version": _VERSION_FEW,
                }
                yield grid.unit("few", pair, partial(_few, grid, pair), depends=depends)


def _few(grid: Grid, pair: Pair) -> list[dict[str, Any]]:
    import tta_jax as tta

    settings = grid.settings
    key = grid.key()
    known, (seen, judged) = grid.source(pair), grid.halves(pair, key)
    labels, held = np.asarray(seen.labels), np.asarray(judged.labels)
    rows = []
    for number in settings.few:
        rng = np.random.default_rng([settings.seed, number])
        chosen = np.concatenate(
            [
                rng.permutation(np.flatnonzero(labels == k))[:number]
                for k in range(seen.num_classes)
            ]
        )
        part = seen.take(np.sort(chosen))
        begin = time.perf_counter()
        result = tta.analyze(
            known, None, part, tta.Config(folds=2, bootstrap=0, rungs="tight"), key
        )
        seconds = time.perf_counter() - begin
        apart, guessing = result.held_out, result.held_out.bound.prior_entropy
        p = np.maximum(
            result.predict_proba(judged.features)[np.arange(len(held)), held], 1e-300
        )
        probe = tta.linear_probe(part, judged, key=key)
        rows.append(
            {
                "labels": number,
                "score": result.score,
                "tight": apart.bound.tight,
                "loss": float(-np.log(p).mean()),
                "held_loss": result.target_loss,
                "free_probe_loss": apart.probe.loss,
                "free_probe_score": 1 - apart.probe.loss / guessing
                if guessing
                else None,
                "probe_loss": probe.loss,
                "probe_accuracy": probe.accuracy,
                "entropy": probe.prior_entropy,
                "seconds_analyze": seconds,
                **{
                    f"metric_{s.metric}": s.value
                    for s in tta.metrics.compute(
                        part, source=known, names=settings.few_metrics, key=key
                    )
                },
            }
        )
    return rows
