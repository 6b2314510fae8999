"""The first stage: the closed-form recipe and the `tight` rung for a pair of
profiles. Pure; batched by `vmap`.

Ridge regression is linear in its targets: with `P` the target's ridge predictions of
its one-hot labels, the logits of every pair are `P S`, S the mean source logits of the
classes assigned (docs/theory.md, section 3.12). So what needs the features is done
once for each task (`profiles`), and a pair costs a few passes over `n_T K` numbers, an
assignment and a sort.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from tta_jax._internal.typing import Array
from tta_jax.bounds.star import star_figures
from tta_jax.core.coupling import entropy_of
from tta_jax.core.linalg import matmul
from tta_jax.core.losses import expected_loss, floored_loss, quantile_coupling
from tta_jax.fitting.assignment import ClassAssignment, match_classes
from tta_jax.fitting.closed_form import RIDGES
from tta_jax.fitting.floor import choose_floor
from tta_jax.fitting.relatedness import (
    LabelledLogits,
    fit_star,
    pool_parts,
    source_branches,
)
from tta_jax.scans.profiles import SourceProfile, TargetProfile

SCALES = (0.05, 25.0)  # the scale of the logits stays within
_HALVINGS = 6  # of that range: to a twentieth of the scale
_NEVER = (
    -1e4
)  # a logit gap that has no probability at any of these scales, and no NaN at 0


def _arange(n: int) -> Array:
    return jnp.arange(n, dtype=jnp.int32)


class PairFigures(NamedTuple):
    """Held-out figures of a pair, nats where it is a loss; float32 scalars.

    Attributes:
      items: held-out target items evaluated.
      inner_loss: the smoothed cross-validated loss by which ridge, scale and offset
        were chosen.
      ridge, scale, offset, floor: what was chosen.
      assigned: `(K_T,)` int32, the source class of each target class.
      share: `(K_T,)`, the target's class shares p_T on the items evaluated; `D` and `B`
        follow from both.
    """

    items: Int[Array, "*pairs"]
    target_loss: Float[Array, "*pairs"]
    target_accuracy: Float[Array, "*pairs"]
    tight: Float[Array, "*pairs"]
    transformed_source_loss: Float[Array, "*pairs"]
    reweighted_source_loss: Float[Array, "*pairs"]
    label_mismatch: Float[Array, "*pairs"]
    prior_entropy: Float[Array, "*pairs"]
    inner_loss: Float[Array, "*pairs"]
    ridge: Float[Array, "*pairs"]
    scale: Float[Array, "*pairs"]
    offset: Float[Array, "*pairs"]
    floor: Float[Array, "*pairs"]
    assigned: Int[Array, "*pairs K_T"]
    share: Float[Array, "*pairs K_T"]


class PairStar(NamedTuple):
    """Held-out figures of a pair in the star (docs/theory.md, section 5.2), nats; NaN
    where the source has fewer classes than the target.

    Attributes:
      directed: of the star in which it is least on the items that learn.
      theorem: likewise.
      prior_entropy: `H(p_T)` of the items evaluated.
    """

    directed: Float[Array, "*pairs"]
    theorem: Float[Array, "*pairs"]
    prior_entropy: Float[Array, "*pairs"]


class Screened(NamedTuple):
    """What screening computes of a pair."""

    figures: PairFigures
    star: PairStar


def screen_pair(
    source: SourceProfile,
    target: TargetProfile,
    classes: ClassAssignment,
    keep: Bool[Array, " m"],
) -> PairFigures:
    """Apply the recipe to one pair and one part.

    The head is restricted to the assigned classes and, where it is ours, follows the
    prior D by `log (D_k / pi_k)` added to its logits, which is exact for a head that
    knows the class probabilities.

    Args:
      source, target: of the pair.
      classes: which source classes are assigned.
      keep: `(m,)` bool, False for held-out target items that the source has learned
        from.
    """
    slots, live = classes.source_class, classes.source_mask
    there, slot_of = classes.target_mask, classes.source_of
    log_d, log_b, shift = classes.log_d, classes.log_b, classes.prior_log_ratio
    prior = jnp.exp(target.log_prior)
    words = source.mean_logits[slots][:, slots] + shift[None]
    words = jnp.where(
        live,
        words
        - jnp.sum(jnp.where(live, words, 0.0), 1, keepdims=True)
        / jnp.sum(live, dtype=words.dtype),
        0.0,
    )
    words = jnp.where(there[:, None], words[slot_of], 0.0)
    number = jnp.sum(target.weights > 0, dtype=words.dtype)
    found = _choose(words, target, number, slot_of, live, log_d)
    inner_loss = found.loss - (
        number * jnp.sum(target.weights * log_b[target.labels]) + jnp.sum(prior * log_b)
    ) / (number + 1.0)
    floor = choose_floor(
        found.losses - log_b[target.labels],
        target.log_prior[target.labels],
        target.weights,
        target.floor,
    )

    # Held out: losses of h''' on the target's items.
    mask = target.held_mask & keep
    logits = (
        found.scale * matmul(words.T, target.held[found.ridge])
        + (found.offset * log_d)[:, None]
    )
    log_h = jax.nn.log_softmax(jnp.where(live[:, None], logits, -jnp.inf), axis=0)
    by_class = jnp.where(
        there[:, None], log_b[:, None] + log_h[slot_of], -jnp.inf
    )  # log (B h), (K_T, m)
    losses = -jnp.take_along_axis(by_class, target.held_labels[None], axis=0)[0]
    losses = floored_loss(losses, target.log_prior[target.held_labels], floor)
    mixed = (1.0 - floor) * jnp.exp(by_class) + floor * prior[:, None]
    hits = jnp.argmax(mixed, axis=0).astype(jnp.int32) == target.held_labels
    counts = jax.ops.segment_sum(
        mask.astype(losses.dtype), target.held_labels, there.shape[0]
    )
    share = _share(counts, prior, jnp.sum(there) > jnp.sum(live))
    mass = jnp.where(mask, (share / jnp.maximum(counts, 1))[target.held_labels], 0.0)
    losses = jnp.where(mask, losses, 0.0)

    # The transformed source's losses: for target class t those of its one source class,
    # `-log h_k - log B_tk`.
    own_logits = jnp.where(
        live, source.held_logits[slots][:, :, slots] + shift[None, None], -jnp.inf
    )
    own = (
        jax.nn.logsumexp(own_logits, axis=2)
        - jnp.diagonal(own_logits, axis1=0, axis2=2).T
    )
    capacity = own.shape[1]
    held = source.held_counts[slots]
    own = jnp.where(live[:, None] & (_arange(capacity)[None] < held[:, None]), own, 0.0)
    own_mean = jnp.sum(own, 1) / jnp.maximum(held, 1).astype(own.dtype)
    spread = (share / jnp.maximum(held[slot_of], 1).astype(share.dtype))[:, None]
    transformed = floored_loss(
        own[slot_of] - log_b[:, None],
        jnp.broadcast_to(target.log_prior[:, None], (len(slot_of), capacity)),
        floor,
    )
    source_mass = jnp.where(
        _arange(capacity)[None] < held[slot_of][:, None], spread, 0.0
    )
    return PairFigures(
        items=jnp.sum(mask, dtype=jnp.int32),
        target_loss=jnp.sum(mass * losses),
        target_accuracy=jnp.sum(jnp.where(hits, mass, 0.0)),
        tight=quantile_coupling(
            transformed.ravel(),
            source_mass.ravel(),
            losses,
            mass,
            (jnp.repeat(_arange(len(slot_of)), capacity), target.held_labels),
        ),
        transformed_source_loss=expected_loss(transformed.ravel(), source_mass.ravel()),
        reweighted_source_loss=jnp.sum(share * own_mean[slot_of]),
        label_mismatch=jnp.sum(
            jnp.where(
                share > 0, share * floored_loss(-log_b, target.log_prior, floor), 0.0
            )
        ),
        prior_entropy=entropy_of(share),
        inner_loss=inner_loss,
        ridge=jnp.asarray(RIDGES, losses.dtype)[found.ridge],
        scale=found.scale,
        offset=found.offset,
        floor=floor,
        assigned=slots[slot_of],
        share=share,
    )


class _Choice(NamedTuple):
    """The choice of least smoothed loss.

    Attributes:
      loss: that loss, but for the constant `log B`.
      losses: `(n,)`, of the items alone.
      ridge, scale, offset: what was chosen.
    """

    loss: Array
    losses: Array
    ridge: Array
    scale: Array
    offset: Array


def _choose(
    words: Array,
    target: TargetProfile,
    number: Array,
    slot_of: Array,
    live: Array,
    log_d: Array,
) -> _Choice:
    """Choose ridge, scale and offset by the smoothed cross-validated loss.

    It is that of `RidgePath.smoothed_losses` up to the constant `log B`: for each item
    the pseudo-observation adds `own logit - mean logit under D` over n + 1, which is
    linear in the scale, so the loss is convex in it.
    """
    slots, ridges = words.shape[1], target.held.shape[0]
    share = jnp.where(live, jnp.exp(log_d), 0.0) / (number + 1.0)
    own = slot_of[target.labels][None, None]

    def gap(values):
        """Each item's logits minus that of its own class, `(slots, r, n)`."""
        values = values - jnp.take_along_axis(
            values, jnp.broadcast_to(own, (1, *values.shape[1:])), axis=0
        )
        return jnp.where(live[:, None, None], values, _NEVER)

    # Items last, so that reductions over classes are additions of long rows.
    gaps = gap(matmul(words.T, target.predictions).reshape(slots, ridges, -1))
    none = jnp.zeros_like(gaps[:, :1])
    scales, losses = _best_scale(gaps, none, target.weights, share)
    ridge = jnp.argmin(jnp.where(jnp.isfinite(losses), losses, jnp.inf))
    prior = gap(log_d[:, None, None] + none)
    alone = lax.dynamic_slice_in_dim(gaps, ridge, 1, 1)
    scale, loss = _best_scale(alone, prior, target.weights, share)
    better = loss[0] < losses[ridge]
    scale = jnp.where(better, scale[0], scales[ridge])
    offset = better.astype(gaps.dtype)
    return _Choice(
        loss=jnp.where(better, loss[0], losses[ridge]),
        losses=jax.nn.logsumexp(scale * alone + offset * prior, axis=0)[0],
        ridge=ridge,
        scale=scale,
        offset=offset,
    )


def _best_scale(
    gaps: Array, offset: Array, weights: Array, share: Array
) -> tuple[Array, Array]:
    """Scales `(r,)` that minimise the mean of `log sum_c exp(e_c) - sum_c share_c e_c`,
    e = scale gap + offset, and those means.

    By halving the range of log scales: the mean is convex in the scale, so its slope
    says on which side the minimum lies, and steps by curvature go astray where classes
    are separable.
    """

    def soft(scale):
        exponents = scale[None, :, None] * gaps + offset
        top = jnp.max(exponents, axis=0)
        weight = jnp.exp(exponents - top[None])
        return weight, jnp.sum(weight, axis=0), top

    def step(bracket, _):
        low, high = bracket
        middle = jnp.sqrt(low * high)
        weight, total, _ = soft(middle)
        falls = (jnp.sum(weight * gaps, axis=0) / total) @ weights < line
        return (jnp.where(falls, middle, low), jnp.where(falls, high, middle)), None

    def drawn(values):
        return jnp.tensordot(share, values, 1) @ weights

    line = drawn(gaps)
    bracket = tuple(jnp.full(gaps.shape[1], scale, gaps.dtype) for scale in SCALES)
    (low, high), _ = lax.scan(step, bracket, None, length=_HALVINGS)
    scale = jnp.sqrt(low * high)
    _, total, top = soft(scale)
    return scale, (jnp.log(total) + top) @ weights - scale * line - drawn(offset)


def _share(counts: Array, prior: Array, shared: Array) -> Array:
    """Class shares of what is evaluated: its own, or the learning part's where a source
    class is shared (`fit_to_sample`).
    """
    wanted = jnp.where(counts > 0, jnp.where(shared, prior, counts), 0.0)
    return wanted / jnp.maximum(jnp.sum(wanted), jnp.finfo(wanted.dtype).tiny)


def screen_star(
    source: SourceProfile,
    target: TargetProfile,
    classes: ClassAssignment,
    keep: Bool[Array, "parts m"],
) -> PairStar:
    """Evaluate the bounds of a pair in the star, on the held-out items of all parts
    together.

    Args:
      source, target, classes: with a leading axis of parts.
      keep: as for `screen_pair`.
    """

    def of_part(source, target, classes, keep):
        fit = source.fit
        learn = LabelledLogits(fit.logits, source.labels, fit.judged)
        chosen = fit_star(learn, fit, target.branches, classes, target.log_prior)
        number, capacity, _ = source.held_logits.shape
        held = LabelledLogits(
            source.held_logits.reshape(number * capacity, number),
            jnp.repeat(_arange(number), capacity),
            (_arange(capacity)[None] < source.held_counts[:, None]).ravel(),
        )
        placed = target.held_branches
        placed = placed._replace(mask=placed.mask & keep)
        return chosen, source_branches(held, chosen.classes), placed

    chosen, mine, theirs = jax.vmap(of_part)(source, target, classes, keep)

    directed, theorem = (
        pool_parts(mine, theirs, choice, target.log_prior)
        for choice in (chosen.directed, chosen.theorem)
    )
    items = directed.target
    share = jax.ops.segment_sum(items.mass, items.labels, len(directed.log_prior))
    found = PairStar(
        star_figures(*directed).directed,
        star_figures(*theorem).theorem,
        entropy_of(share),
    )
    possible = jnp.all(chosen.classes.possible)
    return jax.tree.map(lambda v: jnp.where(possible, v, jnp.nan), found)


def screen_parts(
    source: SourceProfile, target: TargetProfile, keep: Bool[Array, "parts m"]
) -> Screened:
    """Screen a pair: figures averaged over the items that all parts evaluate.

    Args:
      source, target: with a leading axis of parts.
      keep: as for `screen_pair`.

    Returns:
      The figures; classes as assigned in the first part.
    """
    classes = jax.vmap(match_classes)(source.fit, target.means, target.log_prior)
    parts = jax.vmap(screen_pair)(source, target, classes, keep)
    weight = parts.items.astype(parts.target_loss.dtype)
    weight = weight / jnp.maximum(jnp.sum(weight), 1.0)

    def mean(values):
        return jnp.sum(jnp.where(weight > 0, weight * values, 0.0))

    figures = PairFigures(
        items=jnp.sum(parts.items),
        assigned=parts.assigned[0],
        share=weight @ parts.share,
        **{
            name: mean(getattr(parts, name))
            for name in PairFigures._fields
            if name not in ("items", "assigned", "share")
        },
    )
    return Screened(figures, screen_star(source, target, classes, keep))
