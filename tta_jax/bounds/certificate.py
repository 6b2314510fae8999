"""The chain of bounds evaluated once, for good: on the host's CPU, in float64, class by
class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tta_jax._internal.numbers import real_number, whole_number
from tta_jax._internal.padding import pad_length, pad_rows
from tta_jax._internal.serialization import storable
from tta_jax.bounds.chain import (
    RUNGS,
    Bound,
    ChainSettings,
    ClassChain,
    ClassTerms,
    Transforms,
    evaluate_class,
    prepare_chain,
    sum_classes,
)
from tta_jax.bounds.intervals import ClassLosses, class_losses
from tta_jax.core.feature_maps import FeatureMap
from tta_jax.core.heads import SoftmaxHead
from tta_jax.tasks.task import Samples

storable(Bound)
storable(Transforms)

# Entries of a cost that are held at once; larger problems are tiled.
DENSE_ENTRIES = 1 << 25
_TILE_ENTRIES = 1 << 22
# More items than this are not padded: compiling is a small part of the work then.
_MAX_PADDED_ITEMS = 1 << 16
# Entries of costs, a third of a second's work, to save the seconds of a compilation.
_MOST_PADDING = 1 << 21


@storable
@dataclasses.dataclass(frozen=True)
class Interval:
    """Certified lower and upper value of a rung's Wasserstein term, nats, and their
    difference.
    """

    lower: float
    upper: float

    @property
    def gap(self) -> float:
        return self.upper - self.lower


@storable
@dataclasses.dataclass(frozen=True)
class Certificate:
    """What is certain about a chain of bounds, in float64.

    Attributes:
      tight, directed, oscillation, lipschitz, theorem: `Interval` of the Wasserstein
        term of that rung. For `tight` it is exact; for the last two it is tau times the
        distance. `[0, inf]` where the rung is not certified.
      target_loss: of `h'''`, classes weighted by `p_T`.
      holds: whether every rung is at least the one before it.
      reasons: for each rung that is inf, why.
      covers: what the labels are that the loss is counted against.
      iterations: Sinkhorn iterations spent on the three costs, most over classes.
      marginal_error: largest marginal error at which Sinkhorn stopped, before rounding
        to exact marginals.
    """

    tight: Interval
    directed: Interval
    oscillation: Interval
    lipschitz: Interval
    theorem: Interval
    target_loss: float
    holds: bool
    reasons: dict[str, str]
    covers: str
    iterations: tuple[int, int, int]
    marginal_error: float


class Evaluation(NamedTuple):
    """A chain, its certificate, and the losses of each target class with items."""

    bound: Bound
    certificate: Certificate
    classes: list[ClassLosses]


class PaddedShape(NamedTuple):
    """Padded sizes that several evaluations share, so that they are compiled once.

    Attributes:
      rows, columns: source and target items of one class problem.
      source_items, target_items: of all classes.
    """

    rows: int
    columns: int
    source_items: int
    target_items: int


def plan_padding(
    evaluations: list[tuple[np.ndarray, np.ndarray]],
) -> list[PaddedShape | None]:
    """Choose padded sizes for every evaluation, from its class counts, under an
    assignment of classes; the same for all where that is cheap.

    Args:
      evaluations: source `(K_S,)` and target `(K_T,)` class counts of each.

    Returns:
      None for an evaluation whose classes are so unequal that its problems have shapes
      of their own.
    """
    items = [
        _padded_items(max(int(pair[side].sum()) for pair in evaluations))
        for side in (0, 1)
    ]
    padded_shapes: list[PaddedShape | None] = []
    for source_counts, target_counts in evaluations:
        n, m = (np.sort(c[c > 0]) for c in (source_counts, target_counts))
        if not len(n) or not len(m):
            return [None] * len(evaluations)
        padded = PaddedShape(pad_length(n[-1]), pad_length(m[-1]), *items)
        # What the problems need at least, whichever class is assigned to which.
        least = sum(
            pad_length(a) * pad_length(b)
            for a, b in zip(np.resize(n, len(m)), m[::-1], strict=True)
        )
        wanted = len(m) * padded.rows * padded.columns
        padded_shapes.append(
            padded if wanted <= max(4 * least, least + _MOST_PADDING) else None
        )
    known = [padded for padded in padded_shapes if padded is not None]
    if len(known) < len(padded_shapes):
        return padded_shapes
    common = known[0]._replace(
        rows=max(r.rows for r in known), columns=max(r.columns for r in known)
    )
    classes = [int((counts > 0).sum()) for _, counts in evaluations]
    padding = sum(
        k * (common.rows * common.columns - r.rows * r.columns)
        for k, r in zip(classes, known, strict=True)
    )
    return [common] * len(padded_shapes) if padding <= _MOST_PADDING else padded_shapes


def _padded_items(count: int) -> int:
    """Padded number of items; none for so many that compiling is a small part."""
    return pad_length(count) if count <= _MAX_PADDED_ITEMS else count


def _tile(n: int, m: int, dense_entries: int) -> int | None:
    return None if n * m <= dense_entries else max(1, _TILE_ENTRIES // m)


_evaluate_class = jax.jit(evaluate_class, static_argnames="settings")
# What runs once for all classes takes longer to optimise than to run.
_UNOPTIMISED: dict[str, Any] = {"xla_backend_optimization_level": 0}
_prepare = jax.jit(
    prepare_chain, static_argnames="settings", compiler_options=_UNOPTIMISED
)
_sum = jax.jit(
    sum_classes, static_argnames=("affine", "rungs"), compiler_options=_UNOPTIMISED
)


def certify(
    transforms: Transforms,
    source: Samples,
    head: SoftmaxHead,
    target: Samples,
    *,
    rungs: str = "all",
    epsilon: float = 0.02,
    max_iterations: int = 500,
    covers: str = "the labels given",
    on_class: Callable[[], None] | None = None,
    dense_entries: int = DENSE_ENTRIES,
    padded: PaddedShape | None = None,
    groups: tuple[np.ndarray, np.ndarray] | None = None,
) -> Evaluation:
    """The whole chain with certificates (docs/theory.md, section 3.15), by the same
    functions as `bound_terms`, in float64.

    Source rows without mass for a target class are skipped, so an assignment costs one
    source class per target class.

    Args:
      transforms, head: in the coordinates of the samples.
      source, target: host arrays; items whose mask is False are left out.
      rungs: "all" or "tight".
      epsilon, max_iterations: of the Sinkhorn that proposes plans; they decide the gap,
        never the validity.
      covers: what to write into the certificate.
      on_class: called after every target class.
      dense_entries: above so many entries a class's cost is tiled.
      padded: sizes to pad to, at least; None pads no more than this evaluation needs.
      groups: of source and target items, for the intervals: see `class_losses`.

    Raises:
      ValueError: if a target class of the sample has no source class to draw on, or for
        an impossible argument.
    """
    if rungs not in ("all", "tight"):
        raise ValueError(f"rungs: found {rungs!r}; choose 'all' or 'tight'")
    if not 0 < real_number(epsilon) < np.inf:
        raise ValueError(f"epsilon: found {epsilon!r}; give a positive number")
    if (whole_number(max_iterations) or 0) < 1 or (
        whole_number(dense_entries) or 0
    ) < 1:
        raise ValueError(
            f"max_iterations: found {max_iterations!r}, dense_entries: "
            f"{dense_entries!r}; give at least 1"
        )
    num_targets = transforms.log_joint.shape[0]
    items_s = _kept_samples("source", source)
    items_t = _kept_samples("target", target)
    sizes = [_padded_items(len(items.labels)) for items in (items_s, items_t)]
    if padded is not None:
        sizes = np.maximum(sizes, padded[2:]).tolist()
    settings = ChainSettings(
        rungs=rungs, max_iterations=max_iterations, source_capacity=1, target_capacity=1
    )
    transforms, head = jax.tree.map(
        lambda v: np.asarray(v, np.float64),
        (transforms, SoftmaxHead(head.weight, head.bias)),
    )
    phi = transforms.feature_map
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        padded_s, padded_t = (
            jax.device_put(Samples(*(pad_rows(v, size) for v in items)))
            for items, size in zip((items_s, items_t), sizes, strict=True)
        )
        inputs = _prepare(transforms, padded_s, head, padded_t, settings)
        problems = _problem_sizes(
            np.asarray(inputs.log_joint),
            np.asarray(inputs.source_counts),
            np.asarray(inputs.target_counts),
        )
        found: dict[int, ClassChain] = {}
        for t, (n, m) in _padded_problems(problems, padded).items():
            mine = dataclasses.replace(
                settings,
                source_capacity=n,
                target_capacity=m,
                tile=_tile(n, m, dense_entries),
            )
            out = _evaluate_class(inputs, phi, np.int32(t), np.float64(epsilon), mine)
            found[t] = jax.device_get(out)
            if on_class is not None:
                on_class()
        nothing = jax.tree.map(np.zeros_like, next(iter(found.values())).terms)
        terms = jax.tree.map(
            lambda *leaves: np.stack(leaves),
            *(found[t].terms if t in found else nothing for t in range(num_targets)),
        )
        bound = jax.tree.map(float, _sum(inputs, terms, affine=phi.affine, rungs=rungs))
    certificate = _certificate(bound, terms, _reasons(bound, phi, rungs), covers)
    losses = [class_losses(found[t], t, groups) for t in sorted(found)]
    return Evaluation(bound, certificate, losses)


def _kept_samples(name: str, samples: Samples) -> Samples:
    """The items where the mask is True, on the host.

    Raises:
      ValueError: there is none.
    """
    mask = np.asarray(samples.mask, bool)
    features, labels = np.asarray(samples.features), np.asarray(samples.labels)
    if not mask.all():
        features, labels = features[mask], labels[mask]
    if not len(labels):
        raise ValueError(
            f"{name}: no item is left where mask is True; nothing can be evaluated"
        )
    return Samples(features, labels.astype(np.int32), np.ones(len(labels), bool))


def _problem_sizes(
    log_joint: np.ndarray, source_counts: np.ndarray, target_counts: np.ndarray
) -> dict[int, tuple[int, int]]:
    """Source and target items of each target class that has any.

    Raises:
      ValueError: a target class has items, but no source class to draw on.
    """
    drawn = np.exp(log_joint) > 0
    problems = {}
    for t in np.flatnonzero(target_counts):
        size = int(source_counts[drawn[t]].sum())
        if not size:
            raise ValueError(
                f"target: class {t} draws only on source classes without samples in "
                "the part evaluated; give more source samples or a smaller holdout"
            )
        problems[int(t)] = (size, int(target_counts[t]))
    return problems


def _padded_problems(
    sizes: dict[int, tuple[int, int]], padded: PaddedShape | None
) -> dict[int, tuple[int, int]]:
    """Pad every class problem: to one shape, so that one program is compiled, unless
    padding costs more than it saves.
    """
    own = {t: (pad_length(n), pad_length(m)) for t, (n, m) in sizes.items()}
    if padded is not None:
        return {
            t: (max(n, padded.rows), max(m, padded.columns))
            for t, (n, m) in own.items()
        }
    rows, columns = (max(size) for size in zip(*own.values(), strict=True))
    if len(own) * rows * columns <= 4 * sum(n * m for n, m in own.values()):
        return dict.fromkeys(own, (rows, columns))
    return own


def _reasons(bound: Bound, feature_map: FeatureMap, rungs: str) -> dict[str, str]:
    """For each rung that is inf, why."""
    reasons: dict[str, str] = {}
    if rungs != "all":
        reasons = dict.fromkeys(RUNGS[1:], "not asked for (rungs='tight')")
    elif not np.isfinite(bound.lipschitz):
        why = (
            feature_map.why_not
            or "the map's logits differ from the source's by more than rounding"
        )
        reasons |= {"lipschitz": why, "theorem": why}
    if np.isinf(bound.tight):
        reasons["tight"] = "an item has a class of which h''' gives no probability"
    return reasons


def chain_holds(chain: Sequence[Any]) -> Any:
    """Whether every figure is at most the next one, elementwise; sums of float64
    numbers carry a few units in the last places.
    """
    figures = np.asarray(chain, np.float64)
    with np.errstate(invalid="ignore"):
        return (figures[:-1] <= figures[1:] + 1e-10 * (1 + np.abs(figures[:-1]))).all(
            axis=0
        )


def _certificate(
    bound: Bound, parts: ClassTerms, why: dict[str, str], covers: str
) -> Certificate:
    vague = Interval(0.0, float("inf"))
    excess = bound.tight - bound.transformed_source_loss
    directed = oscillation = slope = vague
    if np.isfinite(bound.oscillation):
        directed = Interval(
            float(parts.directed_lower.sum()), bound.directed_wasserstein
        )
        oscillation = Interval(
            float(parts.oscillation_lower.sum()), bound.oscillation_wasserstein
        )
    if np.isfinite(bound.lipschitz):
        lower = bound.lipschitz_constant * float(parts.distance_lower.sum())
        slope = Interval(lower, bound.lipschitz - bound.transformed_source_loss)
    chain = [bound.target_loss, *(getattr(bound, name) for name in RUNGS)]
    return Certificate(
        tight=Interval(excess, excess),
        directed=directed,
        oscillation=oscillation,
        lipschitz=slope,
        theorem=slope,
        target_loss=bound.target_loss,
        holds=bool(chain_holds(chain)),
        reasons=why,
        covers=covers,
        iterations=tuple(int(i) for i in parts.iterations.max(axis=0)),  # type: ignore[arg-type]
        marginal_error=float(parts.error.max()),
    )
