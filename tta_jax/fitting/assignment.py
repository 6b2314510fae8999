"""Choose source classes and assign them to target classes."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from tta_jax._internal.typing import Array
from tta_jax.core import coupling
from tta_jax.core.heads import SoftmaxHead
from tta_jax.core.losses import class_mean, euclidean_cost, log_head
from tta_jax.tasks.task import Samples


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


@partial(jax.jit, static_argnames=("num_targets",))
def assignment(
    head: SoftmaxHead,
    target: Samples,
    present: Bool[Array, " K_S"],
    *,
    num_targets: int,
) -> tuple[Int[Array, " K_T"], Float[Array, "K_T K_S"]]:
    """The source class of each target class, `(K_T,)`, and the cost it minimises
    (Hungarian), `(K_T, K_S)`.

    The cost of a pair is the mean loss of the source head, for the source class, on the
    items of the target class.
    """
    log_h = log_head(head.logits(target.features), present)

    def mean(column):
        return class_mean(column, target.labels, target.mask, num_targets)[0]

    cost = -jax.vmap(mean, in_axes=1, out_axes=1)(jnp.where(present, log_h, 0.0))
    return coupling.assign(cost, present), jnp.where(present, cost, jnp.inf)
