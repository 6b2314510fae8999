"""All metrics of a task, or of many, in one call, on the host: what cannot be computed
is a blank with a reason.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from tta_jax._internal.padding import pad_length, pad_rows
from tta_jax._internal.text import one_line
from tta_jax.core.heads import SoftmaxHead
from tta_jax.fitting.logistic_regression import fit_head
from tta_jax.metrics._registry import REGISTRY, Facts, Metric, load_registered
from tta_jax.probes import FOLDS, deal_folds, log_probabilities
from tta_jax.tasks.loaders import Loader, load_task, named_tasks
from tta_jax.tasks.splits import Seed, device_key, seed_from_key, split_groups
from tta_jax.tasks.task import Samples, Task


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
      source: the source task in the same features, for OTCE, JC-NCE and OTDD; and for
        LEEP and NCE, which need its
        classifier: `fit_head` gives one unless there is a `head`.
      head: the source classifier on these features, for LEEP and NCE.
      probabilities: `(n, K_S)` of the source classifier for the target's items, in
        place of `head`.
      names: of the metrics, in the order wanted; all of them when None.
      key: decides NLEEP's start and the folds of the linear probe; `jax.random.key(0)`
        when None.
      float64: the precision of all of it; True when None, except on TPUs.
      progress: called with a metric's name and the share that is done.

    Raises:
      ValueError: for an unknown name, or arguments that do not fit the target.
    """
    chosen = _metrics(names)
    for argument, given in (("target", target), ("source", source)):
        if not isinstance(given, Task) and not (given is None and argument == "source"):
            raise ValueError(f"{argument}: found {type(given).__name__}; give a Task")
    _check_head(head, "head")
    if head is not None and probabilities is not None:
        raise ValueError("probabilities: found them and a head; give one of them")
    known = np.flatnonzero(np.asarray(target.labelled))
    if source is not None and source.dim != target.dim:
        raise ValueError(
            f"source: it has {source.dim} features, the target {target.dim}; use one "
            "encoder"
        )
    if probabilities is not None and np.shape(probabilities)[:1] != (len(target),):
        raise ValueError(
            f"probabilities: found shape {np.shape(probabilities)} for {len(target)} "
            "items; give one row for each"
        )
    if head is not None and np.shape(head.weight)[1] != target.dim:
        raise ValueError(
            f"head: its weight has shape {np.shape(head.weight)}; the target has "
            f"{target.dim} features"
        )
    if (
        source is not None
        and head is None
        and probabilities is None
        and any(m.needs == "probabilities" for m in chosen)
    ):
        head = _fitted(source)
    facts = Facts(len(known), target.dim, int((target.counts > 0).sum()))
    seed = seed_from_key(jax.random.key(0) if key is None else key)
    wide = jax.default_backend() != "tpu" if float64 is None else float64
    scores = []
    with jax.enable_x64(True) if wide else contextlib.nullcontext():
        call = _Call.of(
            target,
            known,
            source,
            head,
            probabilities,
            seed,
            np.float64 if wide else np.float32,
        )
        for place, metric in enumerate(chosen):
            if progress is not None:
                progress(metric.name, place / len(chosen))
            begin = time.perf_counter()
            value, reason = _one(metric, facts, call)
            scores.append(
                Score(metric.name, value, reason, time.perf_counter() - begin)
            )
    return scores


def tabulate(
    targets: Mapping[str, Task | Loader] | Iterable[Any],
    sources: Mapping[str, Task | Loader] | Iterable[Any] | None = None,
    *,
    heads: Mapping[str, SoftmaxHead] | SoftmaxHead | None = None,
    names: Sequence[str] | None = None,
    key: jax.Array | Seed | None = None,
    float64: bool | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> list[dict[str, Any]]:
    """Metrics of many targets, also with every source of the same encoder: rows for
    `evaluate`, pandas, or a file.

    Metrics that need nothing of a source are computed once a target, and their rows
    have no source.

    Args:
      targets, sources: tasks, or functions that load them, in a list or by name.
      heads: source classifiers on the raw features, by the source's name or by the
        encoder's (its own classifier, which needs no source); or one for all.
        Classifiers of other sources are fitted.
      names, key, float64: as in `compute`.
      progress: called with what is being computed and the share that is done.

    Returns:
      Dictionaries `encoder, source, target, metric, value, reason, seconds`; a task
      that cannot be read is a row with a reason for each metric.

    Raises:
      ValueError: for wrong arguments and a source that cannot be read, never for what
        is wrong with one target.
    """
    chosen = _metrics(names)
    given = named_tasks(targets, "targets")
    there = (
        []
        if sources is None
        else [
            (name, _source(name, one)) for name, one in named_tasks(sources, "sources")
        ]
    )
    needing = {
        what: [m.name for m in chosen if m.needs == what]
        for what in ("nothing", "probabilities", "task")
    }
    if heads is not None and not isinstance(heads, (SoftmaxHead, Mapping)):
        raise ValueError(
            f"heads: found {type(heads).__name__}; give a SoftmaxHead, or a dictionary "
            "of them by name"
        )
    own = dict(heads) if isinstance(heads, Mapping) else {}
    common = heads if isinstance(heads, SoftmaxHead) else None
    for head in own.values():
        _check_head(head, "heads")
    # Sources of several encoders may have one name: their place tells them apart.
    fitted: dict[int, SoftmaxHead | None] = {}
    if needing["probabilities"] and common is None:
        fitted = {
            k: own.get(name) or _fitted(s)
            for k, (name, s) in enumerate(there)
            if s.encoder not in own
        }
    rows: list[dict[str, Any]] = []
    seen: set[tuple[str, str]] = set()
    for place, (label, one) in enumerate(given):

        def tell(what: str, share: float) -> None:
            if progress is not None:
                progress(f"{label} {what}", (place + share) / len(given))

        def add(encoder: str, source: str, scores: Iterable[Score]) -> None:
            about = {"encoder": encoder, "source": source, "target": label}
            rows.extend(about | dataclasses.asdict(score) for score in scores)

        try:
            task = load_task(one)
        except ValueError as error:
            add("", "", _blanks([m.name for m in chosen], one_line(error)))
            continue
        if (task.encoder, label) in seen:
            add(
                task.encoder,
                "",
                _blanks(
                    [m.name for m in chosen], "another task has this name and encoder"
                ),
            )
            continue
        seen.add((task.encoder, label))
        scores = partial(
            _scores_or_blanks, task, key=key, float64=float64, progress=tell
        )
        head = common or own.get(task.encoder)
        add(task.encoder, "", scores(needing["nothing"]))
        if head is not None:
            add(task.encoder, "", scores(needing["probabilities"], head=head))
        paired = needing["task"] + (
            [] if head is not None else needing["probabilities"]
        )
        fits = [k for k, (_, source) in enumerate(there) if _same_encoder(source, task)]
        if not there:
            add(task.encoder, "", scores(paired))
        elif not fits:
            add(task.encoder, "", _blanks(paired, "there is no source of its encoder"))
        for k in fits:
            name, source = there[k]
            add(task.encoder, name, scores(paired, source=source, head=fitted.get(k)))
    return rows


def _scores_or_blanks(task: Task, names: list[str], **options: Any) -> list[Score]:
    """`compute`; where source or head do not fit the task, blanks that say so."""
    try:
        return compute(task, names=names, **options) if names else []
    except ValueError as error:
        return _blanks(names, one_line(error))


def _blanks(names: list[str], reason: str) -> list[Score]:
    return [Score(name, None, reason, 0.0) for name in names]


def _source(name: str, given: Task | Loader) -> Task:
    try:
        return load_task(given)
    except ValueError as error:
        raise ValueError(f"sources: {name}: {error}") from None


def _same_encoder(a: Task, b: Task) -> bool:
    """Whether two tasks may be compared: an encoder that is not known may be any."""
    return a.encoder == b.encoder or not a.encoder or not b.encoder


def _fitted(source: Task) -> SoftmaxHead | None:
    """The source's classifier; None where none can be fitted, so that what needs it is
    a blank.
    """
    try:
        return fit_head(source)
    except ValueError:
        return None


def _metrics(names: Sequence[str] | None) -> list[Metric]:
    if isinstance(names, str):
        raise ValueError(f"names: found {names!r}; give a list of names")
    load_registered()
    for name in names or ():
        if name not in REGISTRY:
            raise ValueError(
                f"names: there is no metric {name!r}; choose among "
                f"{', '.join(REGISTRY)}"
            )
    return [REGISTRY[name] for name in (REGISTRY if names is None else names)]


def _check_head(head: Any, argument: str) -> None:
    if head is not None and not isinstance(head, SoftmaxHead):
        raise ValueError(f"{argument}: found {type(head).__name__}; give a SoftmaxHead")
    if head is not None and np.shape(head.bias) != np.shape(head.weight)[:1]:
        raise ValueError(
            f"{argument}: its weight has shape {np.shape(head.weight)} and its bias "
            f"{np.shape(head.bias)}"
        )
    if head is not None and not (
        np.isfinite(head.weight).all() and np.isfinite(head.bias).all()
    ):
        raise ValueError(f"{argument}: it holds NaN or infinity")


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
        size = pad_length(len(known))

        def pad(values):
            return pad_rows(np.asarray(values)[known], size)

        if head is not None:
            probabilities = np.exp(log_probabilities(head, np.asarray(target.features)))
        samples = None
        if source is not None:
            there = np.flatnonzero(np.asarray(source.labelled))
            wide = pad_length(len(there))
            samples = Samples(
                pad_rows(np.asarray(source.features, dtype)[there], wide),
                pad_rows(np.asarray(source.labels)[there], wide),
                np.arange(wide) < len(there),
            )
        return cls(
            pad(np.asarray(target.features, dtype)),
            pad(target.labels),
            np.arange(size) < len(known),
            max(target.num_classes, 1),
            None if probabilities is None else pad(np.asarray(probabilities, dtype)),
            samples,
            0 if source is None else source.num_classes,
            pad(split_groups(target)),
            pad(deal_folds(target, FOLDS, seed)),
            device_key(seed),
        )


def _one(metric: Metric, facts: Facts, call: _Call) -> tuple[float | None, str]:
    """The value, or why there is none."""
    if not facts.items:
        return None, "the task has no labels; tta.label_free needs none"
    if facts.classes < 2:
        return None, "the task has one class; there is nothing to tell apart"
    given = {
        "nothing": True,
        "probabilities": call.probabilities is not None,
        "task": call.source is not None,
    }[metric.needs]
    if not given:
        return None, "needs " + (
            "the source head" if metric.needs == "probabilities" else "the source task"
        )
    refused = metric.refuse(facts)
    if refused:
        return None, refused
    options = {
        name: getattr(call, name) for name in ("mask", "num_classes", *metric.takes)
    }
    source = {
        "nothing": None,
        "probabilities": call.probabilities,
        "task": call.source,
    }[metric.needs]
    try:
        value = float(metric.function(call.features, call.labels, source, **options))
    except (ValueError, MemoryError, jax.errors.JaxRuntimeError) as error:
        return None, " ".join(str(error).split())[:200]
    if not math.isfinite(value) or (metric.underflows and value == 0):
        return None, metric.undefined
    return value, ""
