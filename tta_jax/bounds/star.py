"""The chain of bounds in a star: one branch for each target class, and an item on the
branch of its most probable class, as far from the centre as it is certain
(docs/theory.md, section 5.2).

Here the paper's theorem has a closed form. No solver is needed, all rungs but `tight`
and `directed` are equal, and the value saturates: items that are classified with
certainty lie in one point however far their features are from each other.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int

from tta_jax._internal.serialization import storable
from tta_jax._internal.typing import Array, ArrayLike
from tta_jax.bounds.chain import Bound
from tta_jax.core import coupling
from tta_jax.core.heads import SoftmaxHead
from tta_jax.core.losses import expected_loss, quantile_coupling
from tta_jax.tasks.standardizer import Standardizer


class StarItems(NamedTuple):
    """Items of one task in the star; n items, K branches.

    Attributes:
      branch: class of the largest logit of each item.
      radius: distance from the centre, from 0 to 1; more where items of several
        classifiers with other scales are one sample.
      labels: the target class that each item belongs to, or is assigned to.
      mass: share of each item in the expected loss; 0 for padding. Source and target
        masses of a class have the same sum.
    """

    branch: Int[Array, " n"]
    radius: Float[Array, " n"]
    labels: Int[Array, " n"]
    mass: Float[Array, " n"]


def class_masses(
    labels: Int[Array, " n"], mask: Bool[Array, " n"], log_prior: Float[Array, " K"]
) -> Float[Array, " n"]:
    """Spread the share of each class evenly over its items, `(n,)`.

    Args:
      labels, mask: class of each item, and whether it counts.
      log_prior: log shares of the classes.
    """
    counts = jax.ops.segment_sum(mask.astype(jnp.int32), labels, log_prior.shape[0])
    share = jnp.exp(log_prior) / jnp.maximum(counts, 1).astype(log_prior.dtype)
    return jnp.where(mask, share[labels], 0.0)


def certainty(
    logits: Float[Array, "n K"],
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """The most probable class of each item and its probability, both `(n,)`.

    Args:
      logits: of the K classes; -inf for classes that are not used.
    """
    branch = jnp.argmax(logits, axis=1).astype(jnp.int32)
    return branch, jnp.max(jax.nn.softmax(logits, axis=1), axis=1)


def star_radius(certainty: Float[Array, " n"], cut: Float[Array, 2]) -> Array:
    """Distance of each item from the centre, `(n,)`.

    Args:
      certainty: probability of the most probable class.
      cut: `b0 <= b1`. The radius rises from 0 to 1 while the probability rises from b0
        to b1; with `b0 = b1` it is a step.
    """
    low, high = cut[0], cut[1]
    width = high - low
    ramp = (certainty - low) / jnp.where(width > 0, width, 1.0)
    step = (certainty >= high).astype(certainty.dtype)
    return jnp.where(width > 0, jnp.clip(ramp, 0.0, 1.0), step)


def star_items(
    logits: Float[Array, "n K"],
    labels: Int[Array, " n"],
    mass: Float[Array, " n"],
    cut: Float[Array, 2],
) -> StarItems:
    """Place items in the star.

    Args:
      logits: of the K target classes; -inf for classes that are not used.
      labels, mass: as in `StarItems`.
      cut: as for `star_radius`.
    """
    branch, probability = certainty(logits)
    return StarItems(branch, star_radius(probability, cut), labels, mass)


@storable
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StarEncoder:
    """The encoder that places raw features in the star, `rho e_a`.

    Attributes:
      scaler: of the raw features.
      head: of the K target classes on scaled features; bias -inf for classes that are
        not used.
      cut: as for `star_radius`.
    """

    scaler: Standardizer
    head: SoftmaxHead
    cut: ArrayLike

    @property
    def dim(self) -> int:
        """Number of raw features."""
        return self.scaler.dim

    @property
    def dtype(self) -> np.dtype:
        """Type of the raw features."""
        return self.scaler.dtype

    def __call__(self, features: ArrayLike) -> Array:
        """Encode raw features `(n, d)`, `(n, K)`."""
        scaled = jnp.asarray(self.scaler(features))
        branch, probability = certainty(self.head.logits(scaled))
        radius = star_radius(probability, jnp.asarray(self.cut))
        return jax.nn.one_hot(branch, len(self.head.bias)) * radius[:, None]


def star_losses(
    items: StarItems, log_prior: Float[Array, " K"], scale: Float[Array, ""]
) -> Float[Array, " n"]:
    """Loss of each item for its own class under `softmax(scale x + log p_T)`, `(n,)`
    nats; at most `scale - log p_T`.

    Args:
      items: in the star.
      log_prior: `log p_T` of the classifier; -inf for classes without items.
      scale: s, not negative.
    """
    steps = scale * items.radius
    # log(1 + p_a (e^s rho - 1)), of numbers that do not overflow.
    share = jnp.exp(log_prior)[items.branch]
    partition = steps + jnp.log(share + (1.0 - share) * jnp.exp(-steps))
    own = jnp.where(items.branch == items.labels, steps, 0.0)
    return partition - own - log_prior[items.labels]


class StarTransport(NamedTuple):
    """Wasserstein distances of each target class in the star, times its mass, `(K,)`.

    Attributes:
      symmetric: with the l1 distance, which is the tree metric of the star.
      directed: charging only what makes the target harder than the source.
    """

    symmetric: Float[Array, " K"]
    directed: Float[Array, " K"]


class MergedItems(NamedTuple):
    """Items of both tasks, those of a class and a branch side by side, from the tip of
    the branch inwards; N items.

    Attributes:
      labels: class of each item.
      radius: its distance from the centre.
      follows: whether the next item lies on the same branch, of the same class.
      net: source mass less target mass from the tip to here.
      harder: of that, what makes the target harder: on its own branch the target loses
        certainty, on another one it gains it.
    """

    labels: Int[Array, " N"]
    radius: Float[Array, " N"]
    follows: Bool[Array, " N"]
    net: Float[Array, " N"]
    harder: Float[Array, " N"]

    def lengths(self, radius: Float[Array, " N"]) -> Float[Array, " N"]:
        """From each item to the next one inwards, if items lie at `radius`, which must
        not change their order.
        """
        inner = jnp.where(self.follows, jnp.roll(radius, -1), 0.0)
        return radius - inner


def merge_items(source: StarItems, target: StarItems, num_classes: int) -> MergedItems:
    """Merge the items of both tasks by one sort.

    Args:
      source, target: items in the star; masses of each class have the same sum.
      num_classes: K, static.
    """
    labels, branch, radius = (
        jnp.concatenate([a, b])
        for a, b in zip(
            (source.labels, source.branch, source.radius),
            (target.labels, target.branch, target.radius),
            strict=True,
        )
    )
    mass = jnp.concatenate([source.mass, -target.mass])
    cell = labels.astype(jnp.int32) * num_classes + branch.astype(jnp.int32)
    order = jnp.lexsort((-lax.stop_gradient(radius), cell))
    cell, labels, branch, radius, mass = (
        v[order] for v in (cell, labels, branch, radius, mass)
    )
    follows = jnp.concatenate([cell[1:] == cell[:-1], jnp.zeros(1, bool)])
    begins = jnp.concatenate([jnp.ones(1, bool), ~follows[:-1]])
    index = jnp.arange(cell.shape[0], dtype=jnp.int32)
    first = lax.cummax(jnp.where(begins, index, 0))
    total = jnp.cumsum(mass)
    net = total - (total - mass)[first]
    harder = jnp.maximum(jnp.where(branch == labels, net, -net), 0.0)
    return MergedItems(labels, radius, follows, net, harder)


def star_transport(
    source: StarItems, target: StarItems, num_classes: int
) -> StarTransport:
    """Compute the transport of every class in closed form, by one sort.

    Each edge of a tree carries the net mass that lies beyond it. On branch j of class t
    that is `S(r) - T(r)`, the shares of source and target items with a radius above r.

    Args:
      source, target: items in the star; masses of each class have the same sum.
      num_classes: K, static.
    """
    merged = merge_items(source, target, num_classes)
    length = merged.lengths(merged.radius)
    symmetric, directed = (
        jax.ops.segment_sum(moved * length, merged.labels, num_classes)
        for moved in (jnp.abs(merged.net), merged.harder)
    )
    return StarTransport(symmetric, directed)


class StarFigures(NamedTuple):
    """Figures of a pair in the star, nats but for the accuracy.

    Attributes:
      source_loss, target_loss: mean losses under the items' masses.
      target_accuracy: of the target items.
      moved: the distances, per unit of scale.
      directed, theorem: the bounds.
    """

    source_loss: Float[Array, ""]
    target_loss: Float[Array, ""]
    target_accuracy: Float[Array, ""]
    moved: StarTransport
    directed: Float[Array, ""]
    theorem: Float[Array, ""]


def star_figures(
    source: StarItems,
    target: StarItems,
    log_prior: Float[Array, " K"],
    scale: Float[Array, ""],
) -> StarFigures:
    """Compute losses and bounds in the star; all but the rung `tight`.

    Args:
      source, target, log_prior, scale: as for `star_chain`.
    """
    losses_s = star_losses(source, log_prior, scale)
    losses_t = star_losses(target, log_prior, scale)
    moved = star_transport(source, target, log_prior.shape[0])
    source_loss = expected_loss(losses_s, source.mass)
    hit = _named_class(target, log_prior, scale) == target.labels
    return StarFigures(
        source_loss=source_loss,
        target_loss=expected_loss(losses_t, target.mass),
        target_accuracy=jnp.sum(jnp.where(hit, target.mass, 0.0)),
        moved=moved,
        directed=source_loss + scale * jnp.sum(moved.directed),
        theorem=source_loss + scale * jnp.sum(moved.symmetric),
    )


def star_chain(
    source: StarItems,
    target: StarItems,
    log_prior: Float[Array, " K"],
    scale: Float[Array, ""],
) -> Bound:
    """Evaluate the chain of bounds in the star; pure and differentiable almost
    everywhere.

    Args:
      source: of every target class the items of its source class.
      target: labelled items.
      log_prior: `log p_T` of the classifier, `(K,)`.
      scale: s, not negative.

    Returns:
      The chain; `oscillation`, `lipschitz` and `theorem` are equal, the Lipschitz
      constant is `scale`, and the label mismatch is 0.
    """
    found = star_figures(source, target, log_prior, scale)
    tight = quantile_coupling(
        star_losses(source, log_prior, scale),
        source.mass,
        star_losses(target, log_prior, scale),
        target.mass,
        (source.labels, target.labels),
    )
    symmetric = jnp.sum(found.moved.symmetric)
    share = jax.ops.segment_sum(target.mass, target.labels, log_prior.shape[0])
    return Bound(
        tight=tight,
        directed=found.directed,
        oscillation=found.theorem,
        lipschitz=found.theorem,
        theorem=found.theorem,
        reweighted_source_loss=found.source_loss,
        label_mismatch=jnp.zeros_like(found.source_loss),
        transformed_source_loss=found.source_loss,
        wasserstein=symmetric,
        directed_wasserstein=scale * jnp.sum(found.moved.directed),
        oscillation_wasserstein=scale * symmetric,
        lipschitz_constant=jnp.asarray(scale, symmetric.dtype),
        prior_entropy=coupling.entropy_of(share),
        target_loss=found.target_loss,
        target_accuracy=found.target_accuracy,
    )


def _named_class(
    items: StarItems, log_prior: Float[Array, " K"], scale: Float[Array, ""]
) -> Int[Array, " n"]:
    """The most probable class of each item, `argmax h(x)`: its branch, if it lies far
    enough out, else the most frequent class; of equal ones the first.
    """
    frequent = jnp.argmax(log_prior).astype(items.labels.dtype)
    branch = items.branch.astype(items.labels.dtype)
    rise = scale * items.radius + log_prior[branch] - log_prior[frequent]
    first = jnp.where(rise == 0, jnp.minimum(branch, frequent), frequent)
    return jnp.where(rise > 0, branch, first)


def informative_excess(
    source: StarItems, target: StarItems, log_prior: Float[Array, " K"]
) -> Float[Array, ""]:
    """How far the certainty of the source exceeds the distance,
    `E_S[rho (1{a = t} - p_T(a))] - W`; positive exactly if a scale exists for which the
    theorem is informative (docs/theory.md, section 5.2).

    Args:
      source, target: items in the star.
      log_prior: `log p_T`, `(K,)`, the shares of the classes.
    """
    own = (source.branch == source.labels).astype(log_prior.dtype)
    gain = own - jnp.exp(log_prior)[source.branch]
    certainty = jnp.sum(source.mass * source.radius * gain)
    moved = star_transport(source, target, log_prior.shape[0])
    return certainty - jnp.sum(moved.symmetric)
