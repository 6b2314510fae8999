"""Refining pair by pair with `analyze`: objectives and maps that are not batched.
Slower, the same rows; no arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tta_jax._internal.text import one_line
from tta_jax.analysis.analyze import analyze
from tta_jax.analysis.result import Analysis
from tta_jax.bounds.chain import Bound
from tta_jax.config import Config
from tta_jax.scans.executor import SignalHandler, Writer, failed_rows, row_names
from tta_jax.scans.parquet_store import STATUS, DictionaryColumn
from tta_jax.scans.stage import ScanSettings


def is_batched(config: Config) -> bool:
    """Whether `stages.Refining` can do it: the default objective and map, in closed
    form.
    """
    return (
        config.objective == "score"
        and config.family == "logit_affine"
        and config.assignment == "cost"
        and config.lipschitz is None
    )


def refine_sequentially(
    setup: ScanSettings,
    plan: Any,
    writer: Writer,
    stop: SignalHandler,
    tell: Callable[[int], None],
) -> None:
    """Every pair of the plan, on the same splits as the first stage."""
    for bucket in plan.buckets:
        for i, j, pair in zip(
            bucket.i.tolist(), bucket.j.tolist(), bucket.pair, strict=True
        ):
            if stop.asked:
                return
            source, target, number = plan.sources[i], plan.targets[j], np.array([pair])
            known = setup.shared.of_pair(i, j)
            try:
                found = analyze(
                    source.task(), source.head, target.task(), setup.config, setup.seed
                )
                writer.put(
                    row_names(plan, number) | _row(found, sum(map(len, known.values())))
                )
            except (ValueError, OSError, FloatingPointError) as error:
                writer.put(failed_rows(plan, number, [one_line(error)]))
            tell(1)


def _row(found: Analysis, known: int) -> dict[str, Any]:
    assert found.held_out is not None
    held, certificate = found.held_out, found.held_out.certificate

    def number(v):
        return np.array([v if v is not None and np.isfinite(v) else np.nan], float)

    low, high = held.intervals.get("score", (np.nan, np.nan))
    figures = {
        name: number(float(getattr(held.bound, name)))
        for name in Bound.__dataclass_fields__
    }
    return figures | {
        "status": DictionaryColumn(np.zeros(1, np.int32), STATUS),
        "stopped": DictionaryColumn.of([found.stopped]),
        "score": number(found.score),
        "score_low": number(low),
        "score_high": number(high),
        "informative": np.array([bool(held.bound.informative)]),
        "holds": np.array([certificate.holds]),
        "directed_wasserstein_lower": number(certificate.directed.lower),
        "oscillation_wasserstein_lower": number(certificate.oscillation.lower),
        "wasserstein_lower": number(certificate.lipschitz.lower),
        "probe_loss": number(held.probe.loss),
        "probe_accuracy": number(held.probe.accuracy),
        "items": np.array([held.items], np.int32),
        "shared_items": np.array([known], np.int32),
    }
