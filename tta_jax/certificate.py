"""The chain of bounds evaluated once, for good: on the host's CPU, in float64, class by class."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tta_jax import coupling
from tta_jax.archive import storable
from tta_jax.bound import (
    RUNGS,
    Bound,
    ClassTerms,
    Transforms,
    assemble,
    class_terms,
    fit_to_sample,
    label_terms,
    tau_of,
)
from tta_jax.head import SoftmaxHead
from tta_jax.task import Samples

storable(Bound)
storable(Transforms)

DENSE_ENTRIES = 1 << 25  # entries of a cost that are held at once; larger problems are tiled
_TILE_ENTRIES = 1 << 22
_ROWS_AT_ONCE = 8192


@storable
@dataclasses.dataclass(frozen=True)
class Interval:
    """Certified lower and upper value of a rung's Wasserstein term, nats, and their difference."""

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
      tight, oscillation, lipschitz, theorem: `Interval` of the Wasserstein term of that rung. For `tight` it is exact; for the last
        two it is tau times the distance. `[0, inf]` where the rung is not certified.
      target_loss: of `h'''`, classes weighted by `p_T`.
      holds: whether `target_loss <= tight <= oscillation <= lipschitz <= theorem`.
      reasons: for each rung that is inf, why.
      covers: what the labels are that the loss is counted against.
      iterations: Sinkhorn iterations spent on the two costs, most over classes.
      marginal_error: largest marginal error at which Sinkhorn stopped, before rounding to exact marginals.
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
      classes: for each target class source losses, masses, target losses, masses (those with mass).
      hits: for each target class whether its items are classified correctly.
    """

    bound: Bound
    certificate: Certificate
    classes: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]
    hits: list[np.ndarray]


def bucket(n: int) -> int:
    """The smallest size of a ladder (16, 32, 64, then four steps an octave) that holds n: few shapes, little padding."""
    if n <= 64:
        return next(s for s in (16, 32, 64) if s >= n)
    base = 1 << ((n - 1).bit_length() - 1)
    return next(s for s in (base * 5 // 4, base * 3 // 2, base * 7 // 4, base * 2) if s >= n)


def pad_rows(values: np.ndarray, size: int) -> np.ndarray:
    return np.pad(values, [(0, size - len(values))] + [(0, 0)] * (values.ndim - 1))


@jax.jit
def _logits(weight: Any, bias: Any, features: Any) -> Any:
    return features @ weight.T + bias


@jax.jit
def _target_logits(phi: Any, head: SoftmaxHead, features: Any) -> Any:
    return phi.target_logits(head, features)


@jax.jit
def _labels(log_joint: Any, source_counts: Any, target_counts: Any) -> tuple[Any, Any]:
    """`log J` for the sample evaluated, and its target prior."""
    fitted = fit_to_sample(log_joint, source_counts, target_counts)
    return fitted, jnp.exp(coupling.log_target_prior(fitted))


_tau = jax.jit(tau_of)
_pull = jax.jit(lambda phi, head: phi.pull(head))


@jax.jit
def _apply(phi: Any, features: Any) -> Any:
    return phi(features)


@partial(jax.jit, static_argnames=("affine", "rungs"))
def _assemble(
    parts: ClassTerms, log_joint: Any, log_b: Any, reweighted: Any, tau: Any, *, affine: bool, rungs: str
) -> Bound:
    return assemble(parts, log_joint, log_b, reweighted, tau, affine, rungs)


def _by_chunks(function: Callable, features: np.ndarray) -> np.ndarray:
    """`function` on padded chunks of float64 rows, so that memory stays bounded and one shape is compiled."""
    size = min(_ROWS_AT_ONCE, bucket(len(features)))
    parts = []
    for start in range(0, len(features), size):
        rows = np.asarray(features[start : start + size], np.float64)
        parts.append(np.asarray(function(pad_rows(rows, size)))[: len(rows)])
    return np.concatenate(parts)


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
) -> Evaluation:
    """The whole chain with certificates (spec, section 3), by the same functions as `bound_terms`, in float64.

    Source rows without mass for a target class are skipped, so an assignment costs one source class per target class.

    Args:
      transforms, head: in the coordinates of the samples.
      source, target: host arrays; items whose mask is False are left out.
      rungs: "all" or "tight".
      epsilon, max_iterations: of the Sinkhorn that proposes plans; they decide the gap, never the validity.
      covers: what to write into the certificate.
      on_class: called after every target class.
      dense_entries: above so many entries a class's cost is tiled.

    Raises:
      ValueError: if a target class of the sample has no source class to draw on.
    """
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        return _certify(
            transforms, source, head, target, rungs, epsilon, max_iterations, covers, on_class, dense_entries
        )  # fmt: skip


def _certify(
    transforms, source, head, target, rungs, epsilon, max_iterations, covers, on_class, dense_entries
) -> Evaluation:
    wide = lambda tree: jax.tree.map(lambda v: np.asarray(v, np.float64), tree)
    num_targets, num_sources = transforms.log_joint.shape
    keep_s, keep_t = np.flatnonzero(source.mask), np.flatnonzero(target.mask)
    y, v = np.asarray(source.labels)[keep_s], np.asarray(target.labels)[keep_t]
    counts_s, counts_t = np.bincount(y, minlength=num_sources), np.bincount(v, minlength=num_targets)
    phi, head = wide(transforms.feature_map), wide(SoftmaxHead(head.weight, head.bias))
    for name, kept in (("source", keep_s), ("target", keep_t)):
        if not len(kept):
            raise ValueError(f"{name}: no item is left where mask is True; nothing can be evaluated")
    learned = wide(transforms.log_joint)
    log_joint, prior = _labels(learned, counts_s, counts_t)
    stranded = (counts_t > 0) & ~(np.asarray(prior) > 0)
    if stranded.any():
        raise ValueError(
            f"target: class {int(np.flatnonzero(stranded)[0])} draws only on source classes without samples in the "
            "part evaluated; give more source samples or a smaller holdout"
        )
    source_features, target_features = np.asarray(source.features), np.asarray(target.features)
    logits = _by_chunks(partial(_logits, head.weight, head.bias), _take(source_features, keep_s))
    target_logits = _by_chunks(partial(_target_logits, phi, head), _take(target_features, keep_t))
    size = bucket(len(y))
    log_b, active, reweighted = label_terms(
        learned, log_joint, pad_rows(logits, size), pad_rows(y.astype(np.int32), size),
        pad_rows(np.ones(len(y), bool), size),
    )  # fmt: skip
    affine = phi.affine and rungs == "all"
    pulled = _pull(phi, head) if affine else None
    mass = np.exp(np.asarray(log_joint)) / np.maximum(counts_s, 1)
    share = np.asarray(prior) / np.maximum(counts_t, 1)

    rows_of = [np.flatnonzero(mass[t][y] > 0) for t in range(num_targets)]
    columns_of = [np.flatnonzero(v == t) for t in range(num_targets)]
    used = [t for t in range(num_targets) if len(columns_of[t]) and share[t] > 0]
    sizes = {t: (bucket(len(rows_of[t])), bucket(len(columns_of[t]))) for t in used}
    common = (max(s[0] for s in sizes.values()), max(s[1] for s in sizes.values()))
    # One shape for all classes, so one compilation, unless padding would cost more than it saves.
    if len(used) * common[0] * common[1] <= 4 * sum(a * b for a, b in sizes.values()):
        sizes = dict.fromkeys(used, common)

    parts, classes, hits = [], [], []
    for t in used:
        n, m = sizes[t]
        rows, columns = rows_of[t], columns_of[t]
        q, r = mass[t][y[rows]], np.full(len(columns), share[t])
        s_rows, t_rows = pad_rows(logits[rows], n), pad_rows(target_logits[columns], m)
        mapped = mapped_logits = u = None
        if affine:
            assert pulled is not None
            z = pad_rows(np.asarray(source_features[keep_s[rows]], np.float64), n)
            mapped = _apply(phi, z)
            mapped_logits = _logits(pulled.weight, pulled.bias, mapped)
            u = pad_rows(np.asarray(target_features[keep_t[columns]], np.float64), m)
        tile = None if n * m <= dense_entries else max(1, _TILE_ENTRIES // m)
        out = class_terms(
            s_rows, mapped, mapped_logits, pad_rows(q, n), t_rows, u, pad_rows(r, m), log_b, np.int32(t), active,
            np.float64(epsilon), rungs=rungs, max_iterations=max_iterations, tile=tile,
        )  # fmt: skip
        integrals, items = jax.device_get(out)
        parts.append(integrals)
        classes.append((items.source[: len(rows)], q, items.target[: len(columns)], r))
        hits.append(items.hit[: len(columns)])
        if on_class is not None:
            on_class()

    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *parts)
    tau = _tau(phi, head, active) if rungs == "all" else np.float64(np.inf)
    bound = jax.tree.map(float, _assemble(stacked, log_joint, log_b, reweighted, tau, affine=affine, rungs=rungs))
    why: dict[str, str] = {}
    if rungs != "all":
        why = dict.fromkeys(RUNGS[1:], "not asked for (rungs='tight')")
    elif not np.isfinite(bound.lipschitz):
        reason = transforms.feature_map.why_not or "the map's logits differ from the source's by more than rounding"
        why = {name: reason for name in RUNGS[2:]}  # noqa: C420 - keeps the keys plain strings for the type checker
    if np.isinf(bound.tight):
        why["tight"] = "an item has a class of which h''' gives no probability"
    certificate = _certificate(bound, stacked, why, covers)
    return Evaluation(bound, certificate, classes, hits)


def _take(features: np.ndarray, index: np.ndarray) -> np.ndarray:
    return features if len(index) == len(features) else features[index]


def _certificate(bound: Bound, parts: ClassTerms, why: dict[str, str], covers: str) -> Certificate:
    vague = Interval(0.0, float("inf"))
    excess = bound.tight - bound.transformed_source_loss
    oscillation, slope = vague, vague
    if np.isfinite(bound.oscillation):
        oscillation = Interval(float(parts.oscillation_lower.sum()), bound.oscillation_wasserstein)
    if np.isfinite(bound.lipschitz):
        lower = bound.lipschitz_constant * float(parts.distance_lower.sum())
        slope = Interval(lower, bound.lipschitz - bound.transformed_source_loss)
    chain = [bound.target_loss, *(getattr(bound, name) for name in RUNGS)]
    # Sums of thousands of float64 numbers carry a few units in the last places.
    holds = all(low <= high + 1e-10 * (1 + abs(low)) for low, high in itertools.pairwise(chain))
    return Certificate(
        tight=Interval(excess, excess), oscillation=oscillation, lipschitz=slope, theorem=slope,
        target_loss=bound.target_loss, holds=bool(holds), reasons=why, covers=covers,
        iterations=tuple(int(i) for i in parts.iterations.max(axis=0)),  # type: ignore[arg-type]
        marginal_error=float(parts.error.max()),
    )  # fmt: skip
