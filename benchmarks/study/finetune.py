"""On request: full fine-tuning on the seen half of a target, judged on the other half; the truth that probes stand in for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.study.features import Grid
from benchmarks.study.pairs import largest_share
from benchmarks.study.settings import trained_name
from benchmarks.study.store import Unit
from benchmarks.study.tables import chance_corrected


def units(grid: Grid) -> Iterator[Unit]:
    settings = grid.settings
    for group in settings.frozen:
        for encoder in group.finetuned:
            for target in group.targets:
                yield _unit(grid, f"frozen {group.name}", encoder, group.source, target)
    for group in settings.trained:
        for source in group.finetuned:
            for target in group.targets:
                yield _unit(grid, f"trained {group.name}", trained_name(group, source), source, target)


def _unit(grid: Grid, group: str, encoder: str, source: str, target: str) -> Unit:
    settings = grid.settings
    about = {"group": group, "encoder": encoder, "source": source, "target": target}
    kept = {"seed": settings.seed, "holdout": settings.holdout, "items": settings.pair_items}
    kept |= {"rates": settings.finetune_rates, "epochs": settings.finetune_epochs}
    reads = (grid.path(encoder, target, "target"),)
    return Unit("finetune", about, reads, kept, lambda: [_row(grid, encoder, target)])


def _row(grid: Grid, encoder: str, target: str) -> dict[str, Any]:
    from tta_jax.data import fine_tune

    settings = grid.settings
    key = grid.key()
    examples = grid.examples(target, "target", trained=False)
    seen, judged = grid.places(encoder, target, key)
    if len(examples) != len(grid.task(encoder, target, "target")):
        raise ValueError(f"{target}: items were skipped when its features were made; the halves would not be the same")
    result = fine_tune(
        grid.encoder(encoder), examples.take(seen), examples.take(judged),
        learning_rates=settings.finetune_rates, epochs=settings.finetune_epochs, key=key,
    )  # fmt: skip
    share = largest_share(np.bincount(np.asarray(examples.labels)[judged]))
    return {
        "tuned_loss": result.loss, "tuned_accuracy": result.accuracy, "tuned_score": result.score, "seconds_tuned": result.seconds,
        "tuned_corrected": chance_corrected(result.accuracy, share), "learning_rate": result.learning_rate, "epoch": result.epoch,
    }  # fmt: skip
