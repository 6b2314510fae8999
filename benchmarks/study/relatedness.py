"""How related a source is, for every pair; and for the same pair with shuffled labels,
which must leave nothing to say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks.study.features import Grid
from benchmarks.study.pairs import FOLDS, truth
from benchmarks.study.settings import Pair
from benchmarks.study.store import Unit
from tta_jax.tasks.subdivision import with_enough_classes
from tta_jax.tasks.task import Task

_VERSION = 2  # raised whenever figures of a pair change
LABELS = ("given", "source shuffled", "target shuffled")


def units(grid: Grid) -> Iterator[Unit]:
    for pair, _ in grid.settings.pairs():
        depends = {"folds": FOLDS, "version": _VERSION}
        run = partial(_rows, grid, pair)
        yield grid.unit("relatedness", pair, run, depends=depends)


def _rows(grid: Grid, pair: Pair) -> list[dict[str, Any]]:
    import tta_jax as tta

    key = grid.key()
    known, (seen, judged) = grid.source(pair), grid.halves(pair, key)
    divided = with_enough_classes(known, seen.num_classes)
    true = truth(seen, judged, key)
    rng = np.random.default_rng(grid.settings.seed)
    rows = []
    for labels in LABELS:
        source, target = divided, seen
        if labels == "source shuffled":  # after dividing: clusters are real structure
            source = _shuffled(source, rng)
        if labels == "target shuffled":
            target = _shuffled(target, rng)
        config = tta.Config(folds=FOLDS, rungs="tight", bootstrap=0)
        result = tta.analyze(source, None, target, config, key)
        assert result.held_out is not None
        row = {
            "labels": labels,
            "seconds": result.timings["relatedness"],
            "source_classes": known.num_classes,
            "source_items": len(known),
            "score": result.score,
            "free_probe_loss": result.held_out.probe.loss,
            "target_loss": result.held_out.bound.target_loss,
            "prior_entropy": result.held_out.bound.prior_entropy,
        }
        if labels == "given":
            row |= _unseen_losses(result, judged)
        if (related := result.relatedness) is not None:
            row |= {
                "star_directed": related.bound.directed,
                "star_theorem": related.theorem_bound.theorem,
                "star_target_loss": related.bound.target_loss,
                "star_tight": related.bound.tight,
                "star_capped": related.capped,
                "star_entropy": related.bound.prior_entropy,
                "holds": related.certificate.holds,
            }
        rows.append(true | row)
    return rows


def _unseen_losses(result: Any, judged: Task) -> dict[str, float]:
    """Loss of the classifier on items that took no part, with its floor and without."""
    bare = dataclasses.replace(result.transforms, floor=0.0)
    x, y = np.asarray(judged.features), np.asarray(judged.labels)
    found = {"floor": float(result.transforms.floor)}
    for name, transforms in (("floored", result.transforms), ("unfloored", bare)):
        p = dataclasses.replace(result, transforms=transforms).predict_proba(x)
        own = np.maximum(p[np.arange(len(y)), y], np.finfo(np.float32).tiny)
        found[f"{name}_loss"] = float(-np.log(own).mean())
    return found


def _shuffled(task: Task, rng: np.random.Generator) -> Task:
    return dataclasses.replace(task, labels=rng.permutation(np.asarray(task.labels)))
