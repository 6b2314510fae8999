"""The chain of bounds evaluated once, for good: on the host's CPU, in float64, class by
class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tta_jax._internal.compilation import run_once_per_key
from tta_jax._internal.numbers import real_number, whole_number
from tta_jax._internal.padding import pad_length, pad_rows
from tta_jax._internal.serialization import storable
from tta_jax.bounds.chain import (
    RUNGS,
    Bound,
    ClassTerms,
    Transforms,
    class_terms,
    lipschitz_of_map,
    reweight_to_sample,
    sum_class_terms,
)
from tta_jax.core import coupling, feature_maps
from tta_jax.core.heads import SoftmaxHead
from tta_jax.core.losses import own_class_losses
from tta_jax.tasks.task import Samples

storable(Bound)
storable(Transforms)

DENSE_ENTRIES = (
    1 << 25
)  # entries of a cost that are held at once; larger problems are tiled
_TILE_ENTRIES = 1 << 22
_ROWS_AT_ONCE = 8192
_MAX_PRECOMPILE_COST = (
    1 << 31
)  # rows, columns and features multiplied: about a second's work
_MOST_PADDING = (
    1 << 21
)  # entries of costs, a third of a second's work, to save the seconds of a compilation


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
      tight, oscillation, lipschitz, theorem: `Interval` of the Wasserstein term of that
        rung. For `tight` it is exact; for the last two it is tau times the distance.
        `[0, inf]` where the rung is not certified.
      target_loss: of `h'''`, classes weighted by `p_T`.
      holds: whether `target_loss <= tight <= oscillation <= lipschitz <= theorem`.
      reasons: for each rung that is inf, why.
      covers: what the labels are that the loss is counted against.
      iterations: Sinkhorn iterations spent on the two costs, most over classes.
      marginal_error: largest marginal error at which Sinkhorn stopped, before rounding
        to exact marginals.
    """

    tight: Interval
    oscillation: Interval
    lipschitz: Interval
    theorem: Interval
    target_loss: float
    holds: bool
    reasons: dict[str, str]
    covers: str
    iterations: tuple[int, int]
    marginal_error: float


class Evaluation(NamedTuple):
    """A chain, its certificate, and what intervals need.

    Attributes:
      classes: for each target class source losses, masses, target losses, masses (those
        with mass).
      hits: for each target class whether its items are classified correctly.
    """

    bound: Bound
    certificate: Certificate
    classes: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]
    hits: list[np.ndarray]


class PaddedShape(NamedTuple):
    """Padded sizes that several evaluations share, so that they are compiled once.

    Attributes:
      rows, columns: source and target items of one class problem.
      items: items whose logits are computed together.
    """

    rows: int
    columns: int
    items: int


def _shapes(
    counts: list[tuple[int, int]], padded: PaddedShape | None
) -> list[tuple[int, int]]:
    """Padded rows and columns of every class problem: one shape, so one compilation,
    unless padding costs more than it saves.
    """
    sizes = [(pad_length(n), pad_length(m)) for n, m in counts]
    if padded is not None:
        return [(max(n, padded.rows), max(m, padded.columns)) for n, m in sizes]
    common = (max(n for n, _ in sizes), max(m for _, m in sizes))
    if len(sizes) * common[0] * common[1] <= 4 * sum(n * m for n, m in sizes):
        return [common] * len(sizes)
    return sizes


def plan_padding(
    evaluations: list[tuple[np.ndarray, np.ndarray]],
) -> list[PaddedShape | None]:
    """Room for every evaluation, from its class counts, under an assignment of classes;
    one for all where that is cheap.

    Args:
      evaluations: source `(K_S,)` and target `(K_T,)` class counts of each.

    Returns:
      None for an evaluation whose classes are so unequal that its problems have shapes
      of their own.
    """
    items = pad_length(
        max(int(counts.sum()) for pair in evaluations for counts in pair)
    )
    padded_shapes: list[PaddedShape | None] = []
    for source_counts, target_counts in evaluations:
        n, m = (np.sort(c[c > 0]) for c in (source_counts, target_counts))
        if not len(n) or not len(m):
            return [None] * len(evaluations)
        padded = PaddedShape(
            pad_length(n[-1]), pad_length(m[-1]), min(_ROWS_AT_ONCE, items)
        )
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


@run_once_per_key
def precompile_certificate(
    padded: PaddedShape,
    dim: int,
    num_sources: int,
    num_targets: int,
    family: str,
    rungs: str,
    max_iterations: int,
) -> None:
    """Compile what `certify` will need for this padded shape, by a certificate of
    zeros; for another thread.

    A class so large that compiling is a small part of the work is left alone.
    """
    if padded.rows * padded.columns * dim > _MAX_PRECOMPILE_COST:
        return
    zeros, eye = np.zeros, np.eye(dim)
    head = SoftmaxHead(zeros((num_sources, dim)), zeros(num_sources))
    if family == "logit_affine":
        phi = feature_maps.LogitAffine(head.weight, head.bias)
        if rungs == "all":
            phi = dataclasses.replace(
                phi, matrix=eye, inverse_matrix=eye, shift=eye[0], reason=""
            )
    else:
        phi = feature_maps.FAMILIES[family](dim, jax.random.key(0))
    log_joint = np.full((num_targets, num_sources), -np.inf)
    log_joint[0, 0] = 0.0
    source, target = (
        Samples(zeros((n, dim)), zeros(n, np.int32), np.ones(n, bool))
        for n in padded[:2]
    )
    certify(
        Transforms(log_joint, phi),
        source,
        head,
        target,
        rungs=rungs,
        max_iterations=max_iterations,
        padded=padded,
    )


def _tile(n: int, m: int, dense_entries: int) -> int | None:
    return None if n * m <= dense_entries else max(1, _TILE_ENTRIES // m)


class _Facts(NamedTuple):
    """What certificates need besides the items: masses, label mixing, active
    classes.
    """

    log_joint: Any
    prior: Any
    log_b: Any
    active: Any


# What runs once on K_T x K_S numbers takes longer to optimise than to run.
_unoptimised = {"xla_backend_optimization_level": 0}


@partial(jax.jit, compiler_options=_unoptimised)
def _facts(learned: Any, source_counts: Any, target_counts: Any) -> _Facts:
    log_joint = reweight_to_sample(learned, source_counts, target_counts)
    active = coupling.log_source_prior(learned) > -jnp.inf
    prior = jnp.exp(coupling.log_target_prior(log_joint))
    return _Facts(log_joint, prior, coupling.log_mixing(learned), active)


@jax.jit
def _pulled(phi: Any, head: SoftmaxHead, active: Any) -> tuple[SoftmaxHead, Any]:
    """The head on mapped features, and its certified constant."""
    return phi.pull(head), lipschitz_of_map(phi, head, active)


@jax.jit
def _source_rows(
    head: SoftmaxHead, active: Any, features: Any, labels: Any
) -> tuple[Any, Any]:
    """Logits of source items and their losses for their own classes."""
    logits = head.logits(features)
    return logits, own_class_losses(logits, labels, active)


@jax.jit
def _target_rows(phi: Any, head: SoftmaxHead, features: Any) -> Any:
    return phi.target_logits(head, features)


@jax.jit
def _mapped_rows(phi: Any, pulled: SoftmaxHead, features: Any) -> tuple[Any, Any]:
    """`phi(z)` and the logits there."""
    mapped = phi(features)
    return mapped, pulled.logits(mapped)


_assemble = jax.jit(
    sum_class_terms, static_argnames=("affine", "rungs"), compiler_options=_unoptimised
)


def _by_chunks(function: Callable, size: int | None, *columns: np.ndarray) -> Any:
    """`function` on chunks of rows padded to one size, so that memory stays bounded and
    one shape is compiled.
    """
    count = len(columns[0])
    size = size or min(_ROWS_AT_ONCE, pad_length(count))
    parts = []
    for start in range(0, count, size):
        rows = min(size, count - start)
        padded = (pad_rows(column[start : start + size], size) for column in columns)
        parts.append(jax.tree.map(lambda v: np.asarray(v)[:rows], function(*padded)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


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
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        return _certify(
            transforms,
            source,
            head,
            target,
            rungs,
            epsilon,
            max_iterations,
            covers,
            on_class,
            dense_entries,
            padded,
        )


def _certify(
    transforms,
    source,
    head,
    target,
    rungs,
    epsilon,
    max_iterations,
    covers,
    on_class,
    dense_entries,
    padded,
) -> Evaluation:
    def wide(tree):
        return jax.tree.map(lambda v: np.asarray(v, np.float64), tree)

    num_targets, num_sources = transforms.log_joint.shape
    keep_s, keep_t = np.flatnonzero(source.mask), np.flatnonzero(target.mask)
    y, v = np.asarray(source.labels)[keep_s], np.asarray(target.labels)[keep_t]
    counts_s, counts_t = (
        np.bincount(y, minlength=num_sources),
        np.bincount(v, minlength=num_targets),
    )
    phi, head = wide(transforms.feature_map), wide(SoftmaxHead(head.weight, head.bias))
    for name, kept in (("source", keep_s), ("target", keep_t)):
        if not len(kept):
            raise ValueError(
                f"{name}: no item is left where mask is True; nothing can be evaluated"
            )
    affine = phi.affine and rungs == "all"
    facts = _facts(wide(transforms.log_joint), counts_s, counts_t)
    pulled, tau = (
        _pulled(phi, head, facts.active) if affine else (None, np.float64(np.inf))
    )
    log_joint, prior = np.asarray(facts.log_joint), np.asarray(facts.prior)
    stranded = (counts_t > 0) & ~(prior > 0)
    if stranded.any():
        raise ValueError(
            f"target: class {int(np.flatnonzero(stranded)[0])} draws only on source "
            "classes without samples in the "
            "part evaluated; give more source samples or a smaller holdout"
        )
    source_features, target_features = (
        np.asarray(source.features),
        np.asarray(target.features),
    )
    logits, own = _by_chunks(
        lambda z, labels: _source_rows(
            head, facts.active, z.astype(np.float64), labels
        ),
        padded and padded.items,
        _take(source_features, keep_s),
        y.astype(np.int32),
    )
    target_logits = _by_chunks(
        lambda x: _target_rows(phi, head, x.astype(np.float64)),
        padded and padded.items,
        _take(target_features, keep_t),
    )
    class_losses = np.bincount(y, own, num_sources) / np.maximum(counts_s, 1)
    mass = np.exp(log_joint) / np.maximum(counts_s, 1)
    share = prior / np.maximum(counts_t, 1)

    rows_of = [np.flatnonzero(mass[t][y] > 0) for t in range(num_targets)]
    columns_of = [np.flatnonzero(v == t) for t in range(num_targets)]
    used = [t for t in range(num_targets) if len(columns_of[t]) and share[t] > 0]
    shapes = _shapes([(len(rows_of[t]), len(columns_of[t])) for t in used], padded)
    parts: list[Any] = [None] * num_targets
    classes, hits = [], []
    for t, (n, m) in zip(used, shapes, strict=True):
        rows, columns = rows_of[t], columns_of[t]
        q, r = mass[t][y[rows]], np.full(len(columns), share[t])
        s_rows, t_rows = pad_rows(logits[rows], n), pad_rows(target_logits[columns], m)
        mapped = mapped_logits = u = None
        if affine:
            z = pad_rows(np.asarray(source_features[keep_s[rows]], np.float64), n)
            mapped, mapped_logits = _mapped_rows(phi, pulled, z)
            u = pad_rows(np.asarray(target_features[keep_t[columns]], np.float64), m)
        out = class_terms(
            s_rows,
            mapped,
            mapped_logits,
            pad_rows(q, n),
            t_rows,
            u,
            pad_rows(r, m),
            facts.log_b,
            np.int32(t),
            facts.active,
            np.float64(epsilon),
            rungs=rungs,
            max_iterations=max_iterations,
            tile=_tile(n, m, dense_entries),
        )
        integrals, items = jax.device_get(out)
        parts[t] = integrals
        classes.append((items.source[: len(rows)], q, items.target[: len(columns)], r))
        hits.append(items.hit[: len(columns)])
        if on_class is not None:
            on_class()

    nothing = jax.tree.map(np.zeros_like, parts[used[0]])
    stacked = jax.tree.map(
        lambda *leaves: np.stack(leaves), *(part or nothing for part in parts)
    )
    chain = _assemble(
        stacked, log_joint, facts.log_b, class_losses, tau, affine=affine, rungs=rungs
    )
    bound = jax.tree.map(float, chain)
    why: dict[str, str] = {}
    if rungs != "all":
        why = dict.fromkeys(RUNGS[1:], "not asked for (rungs='tight')")
    elif not np.isfinite(bound.lipschitz):
        reason = (
            transforms.feature_map.why_not
            or "the map's logits differ from the source's by more than rounding"
        )
        why = {name: reason for name in RUNGS[2:]}  # noqa: C420 - keeps the keys plain strings for the type checker
    if np.isinf(bound.tight):
        why["tight"] = "an item has a class of which h''' gives no probability"
    certificate = _certificate(bound, stacked, why, covers)
    return Evaluation(bound, certificate, classes, hits)


def _take(features: np.ndarray, index: np.ndarray) -> np.ndarray:
    return features if len(index) == len(features) else features[index]


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
    oscillation, slope = vague, vague
    if np.isfinite(bound.oscillation):
        oscillation = Interval(
            float(parts.oscillation_lower.sum()), bound.oscillation_wasserstein
        )
    if np.isfinite(bound.lipschitz):
        lower = bound.lipschitz_constant * float(parts.distance_lower.sum())
        slope = Interval(lower, bound.lipschitz - bound.transformed_source_loss)
    chain = [bound.target_loss, *(getattr(bound, name) for name in RUNGS)]
    return Certificate(
        tight=Interval(excess, excess),
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
