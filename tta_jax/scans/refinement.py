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
from tta_jax.fitting.closed_form import (
    RidgePath,
    class_mean_logits,
    closed_form,
    expand_weights,
    ridge_path,
)
from tta_jax.fitting.fit_pair import INNER_FOLDS, item_weights
from tta_jax.fitting.logistic_regression import refit_head
from tta_jax.scans.profiles import (
    SourceInput,
    SourceProfile,
    TargetInput,
    probe_figures,
)
from tta_jax.scans.screening import match_classes
from tta_jax.tasks.task import Samples

_FIT_STEPS = 30  # with which a head is fitted to other class weights


class RefineSource(NamedTuple):
    """A source as learning needs it; held-out items for the certificate stay on the
    host.

    Attributes:
      features: `(n, p)`; where there are fewer items than features, in a basis of their
        span.
      basis: `(d, p)` or None, that basis: every head that is fitted to the items lies
        in it.
    """

    features: Any
    basis: Any
    labels: Any
    mask: Any
    profile: SourceProfile

    @classmethod
    def of(cls, x: SourceInput, profile: SourceProfile) -> RefineSource:
        features, basis = x.features, None
        if features.shape[0] < features.shape[1]:
            # Features that overflowed fail in their own pairs, not here.
            basis, upper = np.linalg.qr(np.where(np.isfinite(features), features, 0).T)
            features = np.where(np.isfinite(features).all(), upper.T, np.nan).astype(
                features.dtype
            )
        # What only the first stage reads stays away from the devices.
        slim = profile._replace(mean_logits=(), held_logits=(), held_counts=())
        return cls(features, basis, x.labels, x.mask, slim)


class RefineTarget(NamedTuple):
    """A target as learning needs it."""

    features: Any
    labels: Any
    mask: Any
    fold: Any
    dim: Any
    means: Any
    log_prior: Any
    held: Any
    held_labels: Any
    held_mask: Any

    @classmethod
    def of(cls, x: TargetInput, _: None) -> RefineTarget:
        inside = (
            x.labels[None]
            == np.arange(x.log_prior.shape[0], dtype=x.labels.dtype)[:, None]
        ) & x.mask[None]
        means = (
            inside.astype(x.features.dtype)
            @ x.features
            / inside.sum(1, keepdims=True).clip(1).astype(x.features.dtype)
        )
        held = (x.held, x.held_labels, x.held_mask)
        return cls(
            x.features, x.labels, x.mask, x.fold, x.dim, means, x.log_prior, *held
        )


class LearnedPairs(NamedTuple):
    """What learning found for a pair: everything the certificate needs, in slots (see
    `screen.Classes`).

    Attributes:
      weight, bias: the source head, `(C, d)` and `(C,)`.
      mapped_weight, mapped_bias: M and m.
      slots, live, slot_of: as in `Classes`.
      ridge, scale, offset, words, pull, start_loss, best_loss: as in `optimise.Fit`.
      probe_loss, probe_accuracy: of the source-free ridge probe.
    """

    weight: Any
    bias: Any
    mapped_weight: Any
    mapped_bias: Any
    slots: Any
    live: Any
    slot_of: Any
    ridge: Any
    scale: Any
    offset: Any
    words: Any
    pull: Any
    start_loss: Any
    best_loss: Any
    probe_loss: Any
    probe_accuracy: Any


def learn_pairs(
    sources: RefineSource, target: RefineTarget, *, refine: bool
) -> LearnedPairs:
    """One target with several sources (leading axis)."""
    samples = Samples(
        target.features, jnp.where(target.mask, target.labels, 0), target.mask
    )
    num_targets = target.log_prior.shape[0]
    path = ridge_path(
        samples,
        target.mask & (target.fold >= 0),
        target.fold,
        target.dim,
        inner_folds=INNER_FOLDS,
        num_targets=num_targets,
    )
    probe = probe_figures(
        path, target.log_prior, target.held, target.held_labels, target.held_mask
    )
    return jax.vmap(
        lambda source: _learn_pair(source, target, path, probe, refine=refine)
    )(sources)


def _learn_pair(
    source: RefineSource,
    target: RefineTarget,
    path: RidgePath,
    probe: tuple[Array, Array],
    *,
    refine: bool,
) -> LearnedPairs:
    profile = source.profile
    slots, live, _, slot_of, log_d, _, shift = match_classes(
        profile, target.means, target.log_prior
    )
    size = slots.shape[0]
    # Labels as slots; items of other classes take no part.
    place = (
        jnp.full(profile.order.shape[0], size, jnp.int32)
        .at[slots]
        .set(jnp.where(live, jnp.arange(size, dtype=jnp.int32), size))
    )
    labels = place[source.labels]
    mask = source.mask & (labels < size)
    labels = jnp.where(mask, labels, 0)
    weights = item_weights(labels, mask, live, jnp.where(live, jnp.exp(log_d), 0.0))
    start = SoftmaxHead(profile.weight[slots], profile.bias[slots] + shift)
    inside = (
        start
        if source.basis is None
        else SoftmaxHead(start.weight @ source.basis, start.bias)
    )
    found = refit_head(
        inside, source.features, labels, weights, live, profile.l2, steps=_FIT_STEPS
    )
    fitted = jax.tree.map(
        lambda ours, given: jnp.where(profile.reweigh, ours, given), found, inside
    )
    words = class_mean_logits(
        fitted, Samples(source.features, labels, mask), live, num_classes=size
    )
    head = SoftmaxHead(
        jnp.where(
            profile.reweigh, expand_weights(source.basis, fitted.weight), start.weight
        ),
        fitted.bias,
    )
    log_joint = coupling.log_coupling(
        coupling.assignment_logits(slot_of, size), target.log_prior
    )
    fit = closed_form(path, log_joint, slot_of, words, refine=refine)
    return LearnedPairs(
        head.weight,
        head.bias,
        fit.weight,
        fit.bias,
        slots,
        live,
        slot_of,
        fit.ridge,
        fit.scale,
        fit.offset,
        fit.words,
        fit.pull,
        fit.start_loss,
        fit.best_loss,
        *probe,
    )


# -- the certificate -------------------------------------------------------------------


class Evaluated(NamedTuple):
    """A pair and one part as the certificate takes it, float64 on the host. C slots,
    room c for held-out items of a source class.

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
      source_mass, target_mass: `(K_T, c)` and `(K_T, room)`.
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


@partial(jax.jit, static_argnames=("room", "rungs", "max_iterations"))
def certify_pairs(
    pairs: Evaluated, epsilon: Array, *, room: int, rungs: str, max_iterations: int
) -> Certified:
    """Chains of several pairs (leading axis); the same functions as `certify`, with
    room for so many target items of a class.
    """
    one = partial(
        _certify_pair,
        epsilon=epsilon,
        room=room,
        rungs=rungs,
        max_iterations=max_iterations,
    )
    # One after the other: the classes of one pair fill the vectors, and CPUs gain
    # nothing from more.
    return jax.lax.map(one, pairs)


def _certify_pair(
    x: Evaluated, epsilon: Array, room: int, rungs: str, max_iterations: int
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
            first[:, None] + jnp.arange(room, dtype=jnp.int32)[None], order.shape[0] - 1
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

    q, r = spread(number, per_class), spread(counts, room)

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
    """One part of a task as the host keeps it for certificates: input, mean `(d,)` and
    sum of variances of what learns.
    """

    input: Any
    mean: np.ndarray
    spread: float

    @classmethod
    def of(cls, x: SourceInput | TargetInput) -> HostSamples:
        rows = np.asarray(x.features)[np.asarray(x.mask)]
        return cls(
            x,
            rows.mean(0, dtype=np.float64),
            float(rows.var(0, dtype=np.float64).sum()),
        )


def certificate_input(
    learnt: LearnedPairs,
    log_prior: np.ndarray,
    source: HostSamples,
    target: HostSamples,
    keep: np.ndarray,
) -> Evaluated:
    """One pair for the certificate, from what learning gave and the host's own copy of
    the samples.
    """

    def wide(v):
        return np.asarray(v, np.float64)

    s, t = source.input, target.input
    counts = np.where(learnt.live, s.held_counts[learnt.slots], 0)
    return Evaluated(
        SoftmaxHead(wide(learnt.weight), wide(learnt.bias)),
        SoftmaxHead(wide(learnt.mapped_weight), wide(learnt.mapped_bias)),
        learnt.live,
        learnt.slot_of,
        log_prior,
        wide(s.held[learnt.slots]),
        counts.astype(np.int32),
        wide(t.held),
        np.asarray(t.held_labels),
        np.asarray(t.held_mask) & keep,
        source.mean,
        target.mean,
        wide(completion_gain(source.spread, target.spread)),
    )
