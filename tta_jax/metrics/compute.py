"""All metrics of a task in one call, on the host: what cannot be computed is a blank with a reason."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from tta_jax.head import SoftmaxHead
from tta_jax.metrics.registry import REGISTRY, Facts, Metric
from tta_jax.probe import FOLDS, deal_folds, log_probabilities
from tta_jax.task import Samples, Seed, Task, bucket, bundles, device_key, pad_rows, seed_of


@dataclasses.dataclass(frozen=True)
class Score:
    """One metric of one task.

    Attributes:
      metric: its name.
      value: larger means better transfer; None where it cannot be computed.
      reason: why there is no value; empty otherwise.
      seconds: wall time, compilation included.
    """

    metric: str
    value: float | None
    reason: str
    seconds: float


def compute(
    target: Task,
    *,
    source: Task | None = None,
    head: SoftmaxHead | None = None,
    probabilities: Any = None,
    names: Sequence[str] | None = None,
    key: jax.Array | Seed | None = None,
    float64: bool | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> list[Score]:
    """Metrics of a target task, one `Score` each.

    Args:
      target: the task; unlabelled items are left out.
      source: the source task in the same features, for OTCE, JC-NCE and OTDD.
      head: the source classifier on these features, for LEEP and NCE.
      probabilities: `(n, K_S)` of the source classifier for the target's items, in place of `head`.
      names: of the metrics, in the order wanted; all of them when None.
      key: decides NLEEP's start and the folds of the linear probe; `jax.random.key(0)` when None.
      float64: the precision of all of it; True when None, except on TPUs.
      progress: called with a metric's name and the share that is done.

    Raises:
      ValueError: for an unknown name, or arguments that do not fit the target.
    """
    chosen = [_metric(name) for name in (REGISTRY if names is None else names)]
    if head is not None and probabilities is not None:
        raise ValueError("probabilities: found them and a head; give one of them")
    known = np.flatnonzero(np.asarray(target.labelled))
    if source is not None and source.dim != target.dim:
        raise ValueError(f"source: it has {source.dim} features, the target {target.dim}; use one encoder")
    if probabilities is not None and np.shape(probabilities)[:1] != (len(target),):
        raise ValueError(
            f"probabilities: found shape {np.shape(probabilities)} for {len(target)} items; give one row for each"
        )
    if head is not None and np.shape(head.weight)[1] != target.dim:
        raise ValueError(f"head: its weight has shape {np.shape(head.weight)}; the target has {target.dim} features")
    facts = Facts(len(known), target.dim, int((target.counts > 0).sum()))
    seed = seed_of(jax.random.key(0) if key is None else key)
    wide = jax.default_backend() != "tpu" if float64 is None else float64
    scores = []
    with jax.enable_x64(True) if wide else contextlib.nullcontext():
        call = _Call.of(target, known, source, head, probabilities, seed, np.float64 if wide else np.float32)
        for place, metric in enumerate(chosen):
            if progress is not None:
                progress(metric.name, place / len(chosen))
            begin = time.perf_counter()
            value, reason = _one(metric, facts, call)
            scores.append(Score(metric.name, value, reason, time.perf_counter() - begin))
    return scores


def _metric(name: str) -> Metric:
    if name not in REGISTRY:
        raise ValueError(f"names: there is no metric {name!r}; choose among {', '.join(REGISTRY)}")
    return REGISTRY[name]


@dataclasses.dataclass(frozen=True)
class _Call:
    """Arguments of every metric, padded to few shapes."""

    features: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    num_classes: int
    probabilities: np.ndarray | None
    source: Samples | None
    num_source_classes: int
    groups: np.ndarray
    fold: np.ndarray
    key: jax.Array

    @classmethod
    def of(cls, target, known, source, head, probabilities, seed, dtype) -> _Call:
        size = bucket(len(known))
        pad = lambda values: pad_rows(np.asarray(values)[known], size)
        if head is not None:
            probabilities = np.exp(log_probabilities(head, np.asarray(target.features)))
        samples = None
        if source is not None:
            there = np.flatnonzero(np.asarray(source.labelled))
            wide = bucket(len(there))
            samples = Samples(
                pad_rows(np.asarray(source.features, dtype)[there], wide), pad_rows(np.asarray(source.labels)[there], wide),
                np.arange(wide) < len(there),
            )  # fmt: skip
        return cls(
            pad(np.asarray(target.features, dtype)), pad(target.labels), np.arange(size) < len(known), max(target.num_classes, 1),
            None if probabilities is None else pad(np.asarray(probabilities, dtype)), samples,
            0 if source is None else source.num_classes, pad(bundles(target)), pad(deal_folds(target, FOLDS, seed)),
            device_key(seed),
        )  # fmt: skip


def _one(metric: Metric, facts: Facts, call: _Call) -> tuple[float | None, str]:
    """The value, or why there is none."""
    if not facts.items:
        return None, "the task has no labels"
    if facts.classes < 2:
        return None, "the task has one class; there is nothing to tell apart"
    given = {"nothing": True, "probabilities": call.probabilities is not None, "task": call.source is not None}[
        metric.needs
    ]
    if not given:
        return None, "needs " + ("the source head" if metric.needs == "probabilities" else "the source task")
    refused = metric.refuse(facts)
    if refused:
        return None, refused
    options = {name: getattr(call, name) for name in ("mask", "num_classes", *metric.takes)}
    source = {"nothing": None, "probabilities": call.probabilities, "task": call.source}[metric.needs]
    try:
        value = float(metric.function(call.features, call.labels, source, **options))
    except (ValueError, MemoryError, jax.errors.JaxRuntimeError) as error:
        return None, " ".join(str(error).split())[:200]
    if not math.isfinite(value) or (metric.underflows and value == 0):
        return None, metric.undefined
    return value, ""
