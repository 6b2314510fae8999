"""The second stage: what `analyze` does with its default objective, for several sources
of a target at once.

Learning runs on the device in float32: heads refitted on the reweighted source, closed
form and refinement, with everything that depends on the target alone (ridge path,
inverses of the refinement) shared by its sources. The chain of bounds on the held-out
part is then evaluated in float64 on the host's CPU, the target classes of a pair side
by side.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tta_jax._internal.typing import Array
from tta_jax.bounds.chain import (
    Bound,
    ItemLosses,
    class_terms,
    reweight_to_sample,
    sort_by_class,
    sum_class_terms,
)
from tta_jax.core import coupling
from tta_jax.core.feature_maps import affine_completion, completion_gain
from tta_jax.core.heads import SoftmaxHead, lipschitz_constant
from tta_jax.core.losses import own_class_losses
from tta_jax.fitting.assignment import SourceFit
from tta_jax.fitting.fit_pair import PairFit, PairSource, fit_pairs, fit_source
from tta_jax.fitting.prepare import HeldSource, HeldTarget, moments
from tta_jax.scans.profiles import (
    SourceInput,
    TargetInput,
    probe_figures,
)


class RefinedPairs(NamedTuple):
    """Fits of several sources to one target and the target's source-free probe."""

    fit: PairFit
    probe_loss: Array
    probe_accuracy: Array


def fit_refined_source(x: SourceInput) -> SourceFit:
    """Fit a source; what only screening reads is left out."""
    return fit_source(x.arrays)


def refine_pairs(
    sources: PairSource, target: TargetInput, *, refine: bool
) -> RefinedPairs:
    """Fit one target with several sources (leading axis)."""
    fits, probe = fit_pairs(sources, target.arrays, refine=refine)
    loss, accuracy = probe_figures(probe, target.held)
    number = fits.head.bias.shape[:1]
    return RefinedPairs(
        fits, jnp.broadcast_to(loss, number), jnp.broadcast_to(accuracy, number)
    )


# -- the certificate -------------------------------------------------------------------


class Evaluated(NamedTuple):
    """A pair and one part as the certificate takes it, float64 on the host. C slots,
    at most c held-out items of a source class.

    Attributes:
      head, mapped: `(W, c)` and `(M, m)`, `(C, d)`.
      live, slot_of, log_prior: as learned; `log p_T` `(K_T,)` of the learning part.
      source, source_counts: held-out items by slot, `(C, c, d)` and `(C,)`.
      target, labels, mask: `(m, d)`, `(m,)`, `(m,)`.
      mean_source, mean_target, gain: for the completion.
    """

    head: Any
    mapped: Any
    live: Any
    slot_of: Any
    log_prior: Any
    source: Any
    source_counts: Any
    target: Any
    labels: Any
    mask: Any
    mean_source: Any
    mean_target: Any
    gain: Any


class Certified(NamedTuple):
    """The chain of a pair, and what intervals need.

    Attributes:
      bound: `Bound`.
      oscillation_lower, distance_lower: certified lower values of the transport terms
        (the second without tau).
      source_mass, target_mass: `(K_T, c)` and `(K_T, capacity)`.
      losses: `ItemLosses` of the same shapes.
      share: `(K_T,)`, p_T on the items evaluated.
    """

    bound: Bound
    oscillation_lower: Any
    distance_lower: Any
    source_mass: Any
    target_mass: Any
    losses: ItemLosses
    share: Any


@partial(jax.jit, static_argnames=("capacity", "rungs", "max_iterations"))
def certify_pairs(
    pairs: Evaluated, epsilon: Array, *, capacity: int, rungs: str, max_iterations: int
) -> Certified:
    """Chains of several pairs (leading axis); the same functions as `certify`, with
    a capacity for target items of a class.
    """
    one = partial(
        _certify_pair,
        epsilon=epsilon,
        capacity=capacity,
        rungs=rungs,
        max_iterations=max_iterations,
    )
    # One after the other: the classes of one pair fill the vectors, and CPUs gain
    # nothing from more.
    return jax.lax.map(one, pairs)


def _certify_pair(
    x: Evaluated, epsilon: Array, capacity: int, rungs: str, max_iterations: int
) -> Certified:
    size, per_class = x.source.shape[:2]
    learned = coupling.log_coupling(
        coupling.assignment_logits(x.slot_of, size), x.log_prior
    )
    order, first, counts = sort_by_class(x.labels, x.mask, x.log_prior.shape[0])
    log_joint = reweight_to_sample(learned, x.source_counts, counts)
    log_b = coupling.log_mixing(learned)
    index = order[
        jnp.minimum(
            first[:, None] + jnp.arange(capacity, dtype=jnp.int32)[None],
            order.shape[0] - 1,
        )
    ]
    share = jnp.exp(coupling.log_target_prior(log_joint))
    number = x.source_counts[x.slot_of]

    def spread(counts, size):
        return jnp.where(
            jnp.arange(size, dtype=jnp.int32)[None] < counts[:, None],
            (share / jnp.maximum(counts, 1).astype(share.dtype))[:, None],
            0.0,
        )

    q, r = spread(number, per_class), spread(counts, capacity)

    logits = jax.vmap(x.head.logits)(x.source)
    inside = jnp.arange(per_class, dtype=jnp.int32)[None] < x.source_counts[:, None]
    own = jax.vmap(
        lambda rows, k: own_class_losses(rows, jnp.full(per_class, k), x.live)
    )(logits, jnp.arange(size, dtype=jnp.int32))
    means = jnp.sum(jnp.where(inside, own, 0.0), 1) / jnp.maximum(
        x.source_counts, 1
    ).astype(own.dtype)
    target_logits = x.mapped.logits(x.target)[index]
    affine = rungs == "all"
    tau, exists, mapped = jnp.asarray(jnp.inf, own.dtype), jnp.asarray(False), None
    if affine:
        found = affine_completion(
            x.head, x.mapped, x.live, x.mean_source, x.mean_target, x.gain
        )
        exists = found.exists
        # Numbers that mean nothing must not spoil the other rungs.
        mapped = jnp.where(exists, found(x.source), x.source)
        tau = lipschitz_constant(x.mapped.weight, x.live)

    def one(t):
        k = x.slot_of[t]
        rows = (
            (None, None) if mapped is None else (mapped[k], x.mapped.logits(mapped[k]))
        )
        return class_terms(
            logits[k],
            *rows,
            q[t],
            target_logits[t],
            x.target[index[t]] if affine else None,
            r[t],
            log_b,
            t,
            x.live,
            epsilon,
            rungs=rungs,
            max_iterations=max_iterations,
        )

    parts, losses = jax.vmap(one)(jnp.arange(share.shape[0], dtype=jnp.int32))
    parts = parts._replace(
        worst_residual=jnp.where(exists, parts.worst_residual, jnp.inf)
    )
    bound = sum_class_terms(parts, log_joint, log_b, means, tau, affine, rungs)
    return Certified(
        bound,
        jnp.sum(parts.oscillation_lower),
        jnp.sum(parts.distance_lower),
        q,
        r,
        losses,
        share,
    )


class HostSamples(NamedTuple):
    """One split of a task as the host keeps it for certificates.

    Attributes:
      held: its held-out items.
      mean, spread: mean `(d,)` and sum of variances of the features that learn.
    """

    held: HeldSource | HeldTarget
    mean: np.ndarray
    spread: float

    @classmethod
    def of(cls, x: SourceInput | TargetInput) -> HostSamples:
        return cls(x.held, *moments(x.arrays))


def certificate_input(
    fit: PairFit,
    log_prior: np.ndarray,
    source: HostSamples,
    target: HostSamples,
    keep: np.ndarray,
) -> Evaluated:
    """Gather one pair for the certificate from its fit and the host's samples.

    Args:
      fit: of the pair, on the host.
      log_prior: `(K_T,)` float64, `log p_T` of the learning part.
      source, target: of the split.
      keep: `(m,)` bool, False for held-out target items that the source learned from.
    """

    def wide(tree):
        return jax.tree.map(lambda v: np.asarray(v, np.float64), tree)

    assert isinstance(source.held, HeldSource)
    assert isinstance(target.held, HeldTarget)
    assert fit.closed_form is not None
    classes = fit.classes
    counts = np.where(classes.source_mask, source.held.counts[classes.source_class], 0)
    return Evaluated(
        head=wide(fit.head),
        mapped=wide(SoftmaxHead(fit.closed_form.weight, fit.closed_form.bias)),
        live=classes.source_mask,
        slot_of=classes.source_of,
        log_prior=log_prior,
        source=wide(source.held.features[classes.source_class]),
        source_counts=counts.astype(np.int32),
        target=wide(target.held.features),
        labels=np.asarray(target.held.labels),
        mask=np.asarray(target.held.mask) & keep,
        mean_source=source.mean,
        mean_target=target.mean,
        gain=wide(completion_gain(source.spread, target.spread)),
    )
