"""Choose source classes and assign them to target classes."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from tta_jax._internal.typing import Array
from tta_jax.core import coupling
from tta_jax.core.losses import euclidean_cost


@partial(jax.jit, static_argnames=("num_classes",))
def separation_order(
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    mask: Bool[Array, " n"],
    *,
    num_classes: int,
) -> Int[Array, " K_S"]:
    """`(K_S,)` int32: the classes in the order in which a greedy choice for the largest
    smallest separation takes them.

    The first q of them are its choice of q classes; classes without items come last.

    Separation of two classes is the distance of their means over the root of their
    summed mean squared deviations.
    """
    counts = jax.ops.segment_sum(mask.astype(features.dtype), labels, num_classes)
    rows = jnp.where(mask[:, None], features, 0.0)
    means = (
        jax.ops.segment_sum(rows, labels, num_classes) / jnp.maximum(counts, 1)[:, None]
    )
    square = jax.ops.segment_sum(
        jnp.sum(rows**2, 1), labels, num_classes
    ) / jnp.maximum(counts, 1)
    spread = jnp.maximum(square - jnp.sum(means**2, 1), 1e-12)
    separation = euclidean_cost(means, means) / jnp.sqrt(spread[:, None] + spread[None])
    there = counts > 0
    separation = jnp.where(there[:, None] & there[None], separation, -1.0)
    first = jnp.argmax(jnp.max(separation, axis=1)).astype(jnp.int32)

    def add(carry, _):
        nearest, taken = carry
        new = jnp.argmax(
            jnp.where(taken, -jnp.inf, jnp.where(there, nearest, -2.0))
        ).astype(jnp.int32)
        return (jnp.minimum(nearest, separation[new]), taken.at[new].set(True)), new

    start = (separation[first], jnp.zeros(num_classes, bool).at[first].set(True))
    _, others = lax.scan(add, start, None, length=num_classes - 1)
    return jnp.concatenate([first[None], others])


class SourceFit(NamedTuple):
    """What a source gives to every pair it is in; K classes, d features.

    Attributes:
      weight, bias: the head on the prepared features, `(K, d)` and `(K,)`.
      order: `(K,)` int32, classes in the order in which they are taken; those that
        cannot be used come last.
      present: scalar int32, how many can be used.
      log_prior: `(K,)`, log class shares of the learning part.
      refits: scalar bool, whether the head follows the class prior; a head of the
        user's stays as it is.
      l2: weight decay of a fitted head.
    """

    weight: Array
    bias: Array
    order: Array
    present: Array
    log_prior: Array
    refits: Array
    l2: Array


class ClassAssignment(NamedTuple):
    """Which source classes are mapped to which target classes; C candidates.

    Attributes:
      source_class: `(C,)` int32, the source classes that may be used, C the smaller of
        both padded numbers of classes.
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
    ranks: Float[Array, " C"] | None = None,
) -> ClassAssignment:
    """Choose source classes and assign them to target classes.

    Candidates are the first q classes of the greedy order, q the number of target
    classes, or all there are. The Hungarian algorithm assigns them on the losses of the
    source head at the target's class means; these differ from the mean losses of the
    classes' items by a constant of each row.

    Args:
      source: fitted.
      means: `(K_T, d)`, class means of the target's features.
      log_prior: `(K_T,)`, log p_T; -inf for padding.
      ranks: `(C,)` random numbers that assign the candidates instead; None for the
        cheapest assignment.
    """
    targets = log_prior.shape[0]
    source_class = source.order[: min(source.order.shape[0], targets)]
    size = source_class.shape[0]
    index = jnp.arange(size, dtype=jnp.int32)
    target_mask = log_prior > -jnp.inf
    used = jnp.minimum(source.present, jnp.sum(target_mask, dtype=jnp.int32))
    source_mask = index < used
    logits = means @ source.weight[source_class].T + source.bias[source_class][None]
    cost = -jax.nn.log_softmax(jnp.where(source_mask, logits, -jnp.inf), axis=1)
    # The assignment is a loop that NaN would never let end.
    usable = source_mask[None] & target_mask[:, None] & jnp.isfinite(cost)
    cost = jnp.where(usable, cost, 0.0)
    if ranks is None:
        source_of = coupling.assign(cost, source_mask, target_mask)
    else:
        shuffled = jnp.argsort(jnp.where(source_mask, ranks, jnp.inf))
        turn = jnp.arange(targets, dtype=jnp.int32) % jnp.maximum(used, 1)
        source_of = shuffled[turn]
    source_of = jnp.where(target_mask, source_of, 0).astype(jnp.int32)
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
        cost=jnp.where(source_mask[None], cost, jnp.inf),
    )
