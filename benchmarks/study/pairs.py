"""Every pair of the study: what the analysis says from half of the labels of a target,
what a probe does on the other half.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks.study.features import Grid, thinned
from benchmarks.study.settings import Pair
from benchmarks.study.store import Unit
from benchmarks.study.tables import chance_corrected
from tta_jax.tasks.subdivision import with_enough_classes

FOLDS = 4
_SLOW = {
    "otce",
    "otce_wasserstein",
    "jc_nce",
    "otdd",
    "pactran",
}  # on the first split, with fewer source items
_VERSION = 3  # raised whenever figures of a pair change


def units(grid: Grid) -> Iterator[Unit]:
    for pair, slow_items in grid.settings.pairs():
        for repeat in range(grid.settings.repeats):
            yield _unit(grid, pair, repeat, slow_items)


def _unit(grid: Grid, pair: Pair, repeat: int, slow_items: int) -> Unit:
    import tta_jax as tta

    depends = {
        "folds": FOLDS,
        "version": _VERSION,
        "slow_items": slow_items,
        "metrics": sorted(tta.metrics.REGISTRY),
    }
    return grid.unit(
        "pairs",
        pair,
        partial(_rows, grid, pair, repeat, slow_items),
        depends=depends,
        repeat=repeat,
    )


def _rows(grid: Grid, pair: Pair, repeat: int, slow_items: int) -> list[dict[str, Any]]:
    import tta_jax as tta

    key = grid.key(repeat)
    known, (seen, judged) = grid.source(pair), grid.halves(pair, key)
    divided = with_enough_classes(known, seen.num_classes)
    row: dict[str, Any] = truth(seen, judged, key)
    begin = time.perf_counter()
    # The upper rungs take most of the time, and do not need an average over splits.
    result = tta.analyze(
        divided,
        None,
        seen,
        tta.Config(folds=FOLDS, rungs="tight" if repeat else "all"),
        key,
    )
    row["seconds_analyze"] = time.perf_counter() - begin
    held = result.held_out
    assert held is not None
    row |= dataclasses.asdict(held.bound) | {
        "score": result.score,
        "holds": result.holds,
        "informative": bool(held.bound.informative),
        "informative_rungs": list(held.bound.informative_rungs),
        "free_probe_loss": held.probe.loss,
        "free_probe_accuracy": held.probe.accuracy,
        "words": result.info.get("words", ""),
        "items": held.items,
        "source_classes": known.num_classes,
        "subdivided": divided.num_classes,
        "low": held.intervals["score"][0],
        "high": held.intervals["score"][1],
        "holds_in_sample": result.certificate.holds,
    }
    if divided is not known and not repeat:
        plain = tta.analyze(
            known,
            None,
            seen,
            tta.Config(folds=FOLDS, rungs="tight", bootstrap=0, divide_source=False),
            key,
        )
        assert plain.held_out is not None
        row |= {
            "undivided_score": plain.score,
            "undivided_tight": plain.held_out.bound.tight,
        }
    # A probe is the truth here, and the ridge probe of the seen items stands for the
    # slow metric of that name.
    names = [n for n in tta.metrics.REGISTRY if n not in _SLOW and n != "linear_probe"]
    scores = tta.metrics.compute(seen, source=known, names=names, key=key)
    if not repeat:
        fewer = thinned(known, slow_items or len(known), grid.settings.seed)
        scores += tta.metrics.compute(
            seen,
            source=fewer,
            names=[n for n in tta.metrics.REGISTRY if n in _SLOW],
            key=key,
        )
    for score in scores:
        row[f"metric_{score.metric}"], row[f"seconds_{score.metric}"] = (
            score.value,
            score.seconds,
        )
        if score.reason:
            row[f"blank_{score.metric}"] = score.reason
    return [row]


def largest_share(counts: Any) -> float:
    """Of the items, that of the largest class: the accuracy of always naming it."""
    return float(np.max(counts) / np.sum(counts))


def truth(seen: Any, judged: Any, key: Any) -> dict[str, Any]:
    """A linear probe of the seen items on the unseen ones, on both halves of these,
    too; and k-NN.
    """
    import tta_jax as tta

    halves = judged.split(0.5, key)
    begin = time.perf_counter()
    probe = tta.linear_probe(seen, judged, key=key)
    seconds = time.perf_counter() - begin
    parts = tta.linear_probe(
        [seen] * 2, [judged.take(half) for half in halves], probe.l2
    )
    near, share = tta.knn(seen, judged), largest_share(judged.counts)
    row = {
        "seconds_probe": seconds,
        "probe_loss": probe.loss,
        "probe_accuracy": probe.accuracy,
        "probe_entropy": probe.prior_entropy,
        "probe_score": probe.score,
        "probe_l2": probe.l2,
        "chance_corrected": chance_corrected(probe.accuracy, share),
        "largest_share": share,
        "knn_accuracy": near.accuracy,
        "knn_loss": near.loss,
        "seen": len(seen),
        "judged": len(judged),
        "features": seen.dim,
        "classes": judged.num_classes,
    }
    for number, (half, part) in enumerate(zip(halves, parts, strict=True), 1):
        row[f"probe_score_half_{number}"] = part.score
        row[f"chance_corrected_half_{number}"] = chance_corrected(
            part.accuracy, largest_share(judged.take(half).counts)
        )
    return row
