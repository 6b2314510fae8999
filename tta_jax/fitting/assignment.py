"""Choose source classes and assign them to target classes."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from tta_jax._internal.typing import Array
from tta_jax.core import coupling
from tta_jax.core.linalg import matmul
from tta_jax.tasks.task import Task


class SourceFit(NamedTuple):
    """What a source gives to every pair it is in; K classes, d features.

    Attributes:
      weight, bias: the head on the prepared features, `(K, d)` and `(K,)`.
      present: `(K,)` bool, the classes that can be used.
      log_prior: `(K,)`, log class shares of the learning part.
      refits: scalar bool, whether the head follows the class prior; a head of the
        user's stays as it is.
      l2: weight decay of a fitted head.
      logits: `(n, K)`, of the items that learn, each by the head of the inner fold that
        left it out; those of a head of the user's.
      judged: `(n,)` bool, the items that have such logits.
    """

    weight: Array
    bias: Array
    present: Array
    log_prior: Array
    refits: Array
    l2: Array
    logits: Array
    judged: Array


class ClassAssignment(NamedTuple):
    """Which source classes are mapped to which target classes; C candidates.

    Attributes:
      source_class: `(C,)` int32, the source classes that are assigned, C the smaller
        of both padded numbers of classes.
      source_mask: `(C,)` bool, those that are used.
      target_mask: `(K_T,)` bool, target classes that are not padding.
      source_of: `(K_T,)` int32, the candidate of each target class.
      log_d: `(C,)`, log of the prior D with `B D = p_T`; 0 for unused candidates.
      log_b: `(K_T,)`, log B of each target class and its candidate.
      prior_log_ratio: `(C,)`, what the logits of a fitted head gain under D.
      cost: `(K_T, C)`, that the assignment minimises; inf for unused candidates.
    """

    source_class: Array
    source_mask: Array
    target_mask: Array
    source_of: Array
    log_d: Array
    log_b: Array
    prior_log_ratio: Array
    cost: Array


def match_classes(
    source: SourceFit,
    means: Float[Array, "K_T d"],
    log_prior: Float[Array, " K_T"],
    ranks: Float[Array, " K_S"] | None = None,
) -> ClassAssignment:
    """Assign a source class to each target class, one to one where the source has
    enough of them.

    All source classes are candidates. Costs are the source head's losses of its classes
    at the target's class means; these differ from the mean losses of the classes' items
    by a constant of each row.

    Args:
      source: fitted.
      means: `(K_T, d)`, class means of the target's features.
      log_prior: `(K_T,)`, log p_T; -inf for padding.
      ranks: `(K_S,)` random numbers that choose and assign classes instead; None for
        the cheapest assignment.
    """
    targets, sources = log_prior.shape[0], source.present.shape[0]
    size = min(sources, targets)
    target_mask = log_prior > -jnp.inf
    logits = matmul(means, source.weight.T) + source.bias[None]
    cost = -jax.nn.log_softmax(
        jnp.where(source.present[None], logits, -jnp.inf), axis=1
    )
    # The assignment is a loop that NaN would never let end.
    usable = source.present[None] & target_mask[:, None] & jnp.isfinite(cost)
    cost = jnp.where(usable, cost, 0.0)
    if ranks is None:
        assigned = coupling.assign(cost, source.present, target_mask)
    else:
        shuffled = jnp.argsort(jnp.where(source.present, ranks, jnp.inf))
        number = jnp.sum(source.present, dtype=jnp.int32)
        turn = jnp.arange(targets, dtype=jnp.int32) % jnp.maximum(number, 1)
        assigned = shuffled[turn]
    assigned = assigned.astype(jnp.int32)
    used = jnp.zeros(sources, jnp.int32).at[assigned].max(target_mask.astype(jnp.int32))
    # Classes that are used, in their own order, then others to fill up.
    source_class = jnp.argsort(-used, stable=True)[:size].astype(jnp.int32)
    source_mask = used[source_class] > 0
    place = jnp.zeros(sources, jnp.int32)
    place = place.at[source_class].set(jnp.arange(size, dtype=jnp.int32))
    source_of = jnp.where(target_mask, place[assigned], 0).astype(jnp.int32)
    mass = jax.ops.segment_sum(jnp.exp(log_prior), source_of, size)
    log_d = jnp.log(jnp.where(source_mask, mass, 1.0))
    refits = source_mask & source.refits
    return ClassAssignment(
        source_class=source_class,
        source_mask=source_mask,
        target_mask=target_mask,
        source_of=source_of,
        log_d=log_d,
        log_b=jnp.where(target_mask, log_prior - log_d[source_of], 0.0),
        prior_log_ratio=jnp.where(refits, log_d - source.log_prior[source_class], 0.0),
        cost=jnp.where(source_mask[None], cost[:, source_class], jnp.inf),
    )


def candidate_labels(
    labels: Int[Array, " n"],
    mask: Bool[Array, " n"],
    source: SourceFit,
    classes: ClassAssignment,
) -> tuple[Int[Array, " n"], Bool[Array, " n"]]:
    """Label source items by candidate; items of other classes are masked out."""
    size = classes.source_class.shape[0]
    index = jnp.arange(size, dtype=jnp.int32)
    place = jnp.full(source.present.shape[0], size, jnp.int32)
    place = place.at[classes.source_class].set(
        jnp.where(classes.source_mask, index, size)
    )
    found = place[labels]
    kept = mask & (found < size)
    return jnp.where(kept, found, 0), kept


def log_joint64(theta: np.ndarray, target: Task) -> np.ndarray:
    """`log J` in float64, so that its row sums are the sample's class shares to the
    last bit that matters.
    """
    with jax.enable_x64(True), np.errstate(divide="ignore"):
        return np.asarray(
            _log_coupling(np.asarray(theta, np.float64), np.log(target.prior))
        )


_log_coupling = jax.jit(coupling.log_coupling)
