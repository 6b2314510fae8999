"""On request: full fine-tuning on the seen half of a target, judged on the other half;
the truth that probes stand in for.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks.study.features import Grid
from benchmarks.study.pairs import largest_share
from benchmarks.study.settings import Pair
from benchmarks.study.store import Unit
from benchmarks.study.tables import chance_corrected

_VERSION = 2  # raised whenever what is tuned changes


def units(grid: Grid) -> Iterator[Unit]:
    settings = grid.settings
    for group in settings.frozen:
        for encoder in group.finetuned:
            for target in group.targets:
                yield _unit(grid, group.pair(encoder, target))
    for group in settings.trained:
        for source in group.finetuned:
            for target in group.targets:
                yield _unit(grid, group.pair(source, target))


def _unit(grid: Grid, pair: Pair) -> Unit:
    depends = {
        "rates": grid.settings.finetune_rates,
        "epochs": grid.settings.finetune_epochs,
        "version": _VERSION,
    }
    return grid.unit("finetune", pair, partial(_rows, grid, pair), depends=depends)


def _rows(grid: Grid, pair: Pair) -> list[dict[str, Any]]:
    from tta_jax.data import fine_tune

    settings = grid.settings
    key = grid.key()
    examples = grid.examples(pair.target, "target", trained=False)
    seen, judged = grid.places(pair, key)
    if len(examples) != len(grid.task(pair.encoder, pair.target, "target")):
        raise ValueError(
            f"{pair.target}: items were skipped when its features were made; the "
            "halves would not be the same"
        )
    result = fine_tune(
        grid.encoder(pair.encoder),
        examples.take(seen),
        examples.take(judged),
        learning_rates=settings.finetune_rates,
        epochs=settings.finetune_epochs,
        patience=settings.finetune_epochs,
        key=key,
    )
    share = largest_share(np.bincount(np.asarray(examples.labels)[judged]))
    return [
        {
            "tuned_loss": result.loss,
            "tuned_accuracy": result.accuracy,
            "tuned_score": result.score,
            "seconds_tuned": result.seconds,
            "tuned_corrected": chance_corrected(result.accuracy, share),
            "learning_rate": result.learning_rate,
            "epoch": result.epoch,
        }
    ]
