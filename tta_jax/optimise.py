"""Starts in closed form and the optimiser loops, on the device: arrays in, arrays out.

Two ways to learn the transformations:

* `closed_form` (objective "score"): the spec's recipe, a ridge map onto the mean source
  logits of the assigned classes, then penalised steps away from it, kept only where
  inner folds say that they help.
* `minimise` (objectives "tight", "oscillation", "theorem", and "score" for restricted
  maps): Adam on the objective over class-balanced batches, with the best iterate on an
  inner validation part kept.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Bool, Float, Int

from tta_jax import coupling, terms
from tta_jax.ahead import once
from tta_jax.bound import class_slots, tau_of
from tta_jax.head import SoftmaxHead, at_most, penalised_path, second_moments
from tta_jax.linalg import solve_positive
from tta_jax.task import Samples
from tta_jax.transport import certify, sinkhorn

Array = jax.Array

RIDGES = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
SCALES = tuple(0.25 * 1.35**k for k in range(14))
PULLS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


# -- closed form -----------------------------------------------------------------------


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
    separation = terms.euclidean_cost(means, means) / jnp.sqrt(
        spread[:, None] + spread[None]
    )
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
    log_h = terms.log_head(head.logits(target.features), present)

    def mean(column):
        return terms.class_mean(column, target.labels, target.mask, num_targets)[0]

    cost = -jax.vmap(mean, in_axes=1, out_axes=1)(jnp.where(present, log_h, 0.0))
    return coupling.assign(cost, present), jnp.where(present, cost, jnp.inf)


@partial(jax.jit, static_argnames=("num_classes",))
def class_mean_logits(
    head: SoftmaxHead, source: Samples, active: Bool[Array, " K_S"], *, num_classes: int
) -> Float[Array, "K_S K_S"]:
    """Mean source logits of each class, centred over the active classes, `(K_S, K_S)`;
    zeros for inactive ones.
    """
    logits = jnp.where(active, head.logits(source.features), 0.0)
    logits = jnp.where(
        active,
        logits
        - jnp.sum(logits, 1, keepdims=True) / jnp.sum(active, dtype=logits.dtype),
        0.0,
    )
    counts = jax.ops.segment_sum(
        source.mask.astype(logits.dtype), source.labels, num_classes
    )
    sums = jax.ops.segment_sum(
        jnp.where(source.mask[:, None], logits, 0.0), source.labels, num_classes
    )
    return sums / jnp.maximum(counts, 1)[:, None]


class RidgePath(NamedTuple):
    """Ridge regressions of one-hot labels on the features: one for each inner fold left
    out, and one on everything.

    Attributes:
      features: `(n, p)`, the items' features; where there are fewer items than
        features, in a basis of their span.
      basis: `(d, p)` or None, that basis.
      beta, intercept: `(folds + 1, len(RIDGES), p, K_T)` and
        `(folds + 1, len(RIDGES), K_T)`; the last leaves nothing out.
      labels, weights, judging: `(n,)`; `judging` are the weights of the items by which
        choices are judged.
      fold: `(n,)`.
      unit: mean variance of a feature, the unit of `RIDGES` and `PULLS`; 1 for
        standardised features.
    """

    features: Array
    basis: Array | None
    beta: Array
    intercept: Array
    labels: Array
    weights: Array
    judging: Array
    fold: Array
    unit: Array

    @property
    def folds(self) -> int:
        return self.beta.shape[0] - 1

    def train(self, k: Array) -> Array:
        """Weights of the items that fold k learns from; `k = folds` learns from all."""
        return jnp.where(self.fold != k, self.weights, 0.0)

    def unseen(self, values: Array) -> Array:
        """`(n, ...)` from `(folds, n, ...)`: every item by the fold that left it
        out.
        """
        numbers = jnp.arange(self.folds, dtype=self.fold.dtype)
        inside = (self.fold[None] == numbers[:, None]).reshape(
            values.shape[:2] + (1,) * (values.ndim - 2)
        )
        return jnp.sum(jnp.where(inside, values, 0.0), axis=0)

    def losses(self, logits: Array, log_b: Array, log_d: Array, active: Array) -> Array:
        """`(n,)` losses by which choices are made: each item's own under `h'''`, with
        its share of that of one item more.

        That item is each of the judged ones with equal probability, but its source
        class is drawn from D and its target class from B. Where a few items are all
        told apart, theirs alone call for logits without limit, and the first unseen
        item that is not costs any number of nats.
        """
        kept, prior = (
            jnp.where(active, logits, -jnp.inf),
            jnp.where(active, jnp.exp(log_d), 0.0),
        )
        mismatch = coupling.label_mismatch(
            jnp.where(active[None], log_b + log_d[None], -jnp.inf), log_b
        )
        drawn = (
            jax.nn.logsumexp(kept, axis=1)
            - jnp.where(active, logits, 0.0) @ prior
            + mismatch
        )
        number = jnp.sum(self.judging)
        return (
            number * terms.mixed_loss(logits, log_b[self.labels], active) + drawn
        ) / (number + 1.0)

    def mean_loss(self, losses: Array) -> Array:
        """Mean over the judged items."""
        return terms.expected_loss(losses, self.judging) / jnp.maximum(
            jnp.sum(self.judging), 1.0
        )


def unfold(basis: Array | None, weight: Array) -> Array:
    """Weights `(k, p)` in a path's basis as weights of the features that were given,
    `(k, d)`.
    """
    return weight if basis is None else weight @ basis.T


@partial(jax.jit, static_argnames=("inner_folds", "num_targets"))
def ridge_path(
    target: Samples,
    judged: Bool[Array, " n"],
    fold: Int[Array, " n"],
    dim: Int[Array, ""] | None = None,
    *,
    inner_folds: int,
    num_targets: int,
) -> RidgePath:
    """Weighted ridge regressions with a free intercept, for every inner fold and every
    ridge.

    Args:
      target: the learning part.
      judged: `(n_T,)` bool, the items by whose inner-fold loss choices are made; those
        with true labels.
      fold: `(n_T,)` int, inner fold of each item.
      dim: how many of the features are not padding; None for all.
    """
    features, labels, mask = target
    dtype = features.dtype
    basis = None
    if features.shape[0] < features.shape[1]:
        # Every solution lies in the span of the items.
        basis, upper = jnp.linalg.qr(features.T)
        features = upper.T
    weights = mask.astype(dtype)
    onehot = jax.nn.one_hot(labels, num_targets, dtype=dtype)
    mean = weights @ features / jnp.maximum(jnp.sum(weights), 1.0)
    spread = jnp.sum(weights[:, None] * (features - mean[None]) ** 2) / jnp.maximum(
        jnp.sum(weights), 1.0
    )
    dim = jnp.asarray(target.features.shape[1] if dim is None else dim)
    unit = jnp.maximum(spread / dim.astype(dtype), jnp.finfo(dtype).tiny)
    ridges = unit * jnp.asarray(RIDGES, dtype)

    def solve_fold(k):
        mine = jnp.where(fold != k, weights, 0.0)
        total = jnp.maximum(jnp.sum(mine), 1e-12)
        mean_x, mean_y = mine @ features / total, mine @ onehot / total
        centred = (features - mean_x[None]) * jnp.sqrt(mine)[:, None]
        gram = centred.T @ centred / total
        cross = centred.T @ ((onehot - mean_y[None]) * jnp.sqrt(mine)[:, None]) / total

        eye = jnp.eye(gram.shape[0], dtype=dtype)
        beta = lax.map(lambda ridge: solve_positive(gram + ridge * eye, cross), ridges)
        return beta, mean_y[None] - mean_x @ beta

    # One more "fold" that leaves nothing out is the fit on everything.
    beta, intercept = lax.map(solve_fold, jnp.arange(inner_folds + 1, dtype=fold.dtype))
    return RidgePath(
        features,
        basis,
        beta,
        intercept,
        labels,
        weights,
        jnp.where(judged, weights, 0.0),
        fold,
        unit,
    )


class Start(NamedTuple):
    """The closed form's choices of least `RidgePath.losses` over inner folds, and the
    heads they give.

    Attributes:
      weight, bias: `(folds + 1, k, p)` and `(folds + 1, k)`, one head for each fold
        left out; the last learns from all.
      loss: the mean of those losses, nats.
      ridge, words: indices into `RIDGES` and the candidate code words.
      scale, offset: numbers.
    """

    weight: Array
    bias: Array
    loss: Array
    ridge: Array
    words: Array
    scale: Array
    offset: Array


@jax.jit
def best_start(
    path: RidgePath,
    words: Float[Array, "c K_T k"],
    log_d: Float[Array, " k"],
    log_b: Float[Array, "K_T k"],
    active: Bool[Array, " k"],
) -> Start:
    """Code words, ridge, scale and offset of least loss over inner folds and one item
    more.

    Args:
      words: `(c, K_T, k)` candidates for the code words.
      log_d: `(k,)`, added where the offset is 1 and the class is active.
      log_b: `(K_T, k)`.
      active: `(k,)` bool.
    """
    dtype = path.features.dtype
    log_d = jnp.where(active, log_d, 0.0)
    scales, offsets = jnp.asarray(SCALES, dtype), jnp.asarray((0.0, 1.0), dtype)
    grid = tuple(v.ravel() for v in jnp.meshgrid(scales, offsets, indexing="ij"))

    def losses_of(choice):
        ridge, kind = choice
        by_fold = jnp.einsum("np,fpt->fnt", path.features, path.beta[:-1, ridge])
        coded = path.unseen(by_fold + path.intercept[:-1, ridge, None]) @ words[kind]

        def at(scale, offset):
            return path.mean_loss(
                path.losses(scale * coded + offset * log_d[None], log_b, log_d, active)
            )

        return jax.vmap(at)(*grid)

    pairs = tuple(
        v.ravel()
        for v in jnp.meshgrid(
            jnp.arange(len(RIDGES)), jnp.arange(len(words)), indexing="ij"
        )
    )
    table = lax.map(losses_of, pairs)
    best, at = jnp.unravel_index(
        jnp.argmin(jnp.where(jnp.isfinite(table), table, jnp.inf)), table.shape
    )
    (ridge, kind), (scale, offset) = (v[best] for v in pairs), (v[at] for v in grid)
    weight = jnp.swapaxes(scale * (path.beta[:, ridge] @ words[kind]), 1, 2)
    bias = scale * (path.intercept[:, ridge] @ words[kind]) + offset * log_d[None]
    return Start(weight, bias, table[best, at], ridge, kind, scale, offset)


def ridge_probe(path: RidgePath, log_prior: Array) -> SoftmaxHead:
    """A ridge probe of the target, `(K_T, d)`: what its labels give without any source.

    Args:
      log_prior: `(K_T,)`; -inf for a class without items.
    """
    start = best_start(path, *_probe_words(log_prior))
    return _probe_head(path.basis, start, log_prior)


@jax.jit
def _probe_words(log_prior: Array):
    """The arguments of `best_start` for code words without a source: equidistant ones
    for the classes with items.
    """
    there = log_prior > -jnp.inf
    eye = jnp.eye(log_prior.shape[0], dtype=log_prior.dtype)
    # Both candidates are the same: with as many source classes the search is the one
    # that `closed_form` has compiled.
    words = jnp.stack(
        [20.0 * (eye - there.astype(eye.dtype)[None] / jnp.sum(there, dtype=eye.dtype))]
        * 2
    )
    return words, log_prior, jnp.log(eye), there


@jax.jit
def _probe_head(basis: Array | None, start: Start, log_prior: Array) -> SoftmaxHead:
    # Classes without items take no probability.
    return SoftmaxHead(
        unfold(basis, start.weight[-1]),
        jnp.where(log_prior > -jnp.inf, start.bias[-1], -jnp.inf),
    )


class Fit(NamedTuple):
    """What the closed form and its refinement found.

    Attributes:
      weight, bias: M `(K_S, d)` and m `(K_S,)`.
      ridge, scale, offset: the closed form's choices; offset 1 adds `log D` to the
        logits.
      words: 0 where the code words are the source's mean logits, 1 where equidistant
        ones did better.
      pull: index into `PULLS` of the refinement, -1 where the start was kept.
      start_loss, best_loss: mean `RidgePath.losses` over the inner folds, of the start
        and of what was chosen, nats.
      path: the same along `PULLS`, `(len(PULLS),)`; NaN where it was not asked for.
      margin: standard error of the improvement.
    """

    weight: Array
    bias: Array
    ridge: Array
    scale: Array
    offset: Array
    words: Array
    pull: Array
    start_loss: Array
    best_loss: Array
    path: Array
    margin: Array


def closed_form(
    path: RidgePath,
    log_joint: Float[Array, "K_T K_S"],
    source_of: Int[Array, " K_T"],
    mean_logits: Float[Array, "K_S K_S"],
    *,
    refine: bool = True,
) -> Fit:
    """The recipe's map (spec, section 3): ridge onto mean source logits, then refined
    by penalised likelihood.

    Ridge regression is linear in its targets, so one solve for one-hot labels serves
    every source: the logits are `scale * (u R + r) S` with code words S, one row for
    each target class: the mean logits of its source class, or equidistant ones, which
    lose what the source says about similar classes but not what the target says. Ridge,
    words, scale and offset are those of least mean loss of `h'''` over inner folds and
    one item more (`RidgePath.losses`). The refinement minimises the mean loss of `h'''`
    on what it learns from plus `pull / 2 ||M - M_0||^2`, along a path of falling pulls,
    and is adopted only where the losses by which choices are made improve by more than
    one standard error.

    Args:
      path: of the target's learning part.
      log_joint: `(K_T, K_S)`.
      source_of: `(K_T,)` assigned source class.
      mean_logits: `(K_S, K_S)`, from `class_mean_logits`.
    """
    words, log_d, log_b, active = _code_words(log_joint, source_of, mean_logits)
    start = best_start(path, words, log_d, log_b, active)
    return _chosen(path, start, log_d, log_b, active, refine=refine)


@once
def compile_closed_form(
    items: int,
    dim: int,
    num_targets: int,
    num_sources: int,
    inner_folds: int,
    refine: bool,
    dtype: Any,
) -> None:
    """Compile the longest part of `closed_form` for so many (padded) items; for another
    thread, and to wait for it.
    """
    of = jax.ShapeDtypeStruct
    labels, flags = of((items,), np.int32), of((items,), bool)
    path = jax.eval_shape(
        partial(ridge_path, inner_folds=inner_folds, num_targets=num_targets),
        Samples(of((items, dim), dtype), labels, flags),
        flags,
        labels,
    )
    log_joint = of((num_targets, num_sources), dtype)
    words, log_d, log_b, active = jax.eval_shape(
        _code_words,
        log_joint,
        of((num_targets,), np.int32),
        of((num_sources, num_sources), dtype),
    )
    start = jax.eval_shape(best_start, path, words, log_d, log_b, active)
    _chosen.lower(path, start, log_d, log_b, active, refine=refine).compile()


@jax.jit
def _code_words(log_joint: Array, source_of: Array, mean_logits: Array):
    """Candidates `(2, K_T, K_S)`, `log D`, `log B` and the active classes."""
    log_d = coupling.log_source_prior(log_joint)
    active = log_d > -jnp.inf
    share = active.astype(mean_logits.dtype) / jnp.sum(active, dtype=mean_logits.dtype)
    equidistant = jnp.eye(log_joint.shape[1], dtype=mean_logits.dtype) - share[None]
    size = jnp.sqrt(jnp.mean(jnp.sum(mean_logits[source_of] ** 2, axis=1)))
    words = jnp.stack([mean_logits[source_of], size * equidistant[source_of]])
    return words, log_d, coupling.log_mixing(log_joint), active


@partial(jax.jit, static_argnames=("refine",))
def _chosen(
    path: RidgePath,
    start: Start,
    log_d: Array,
    log_b: Array,
    active: Array,
    *,
    refine: bool,
) -> Fit:
    """The start, or the point of the refinement's path that the inner folds prefer by
    more than a standard error.
    """
    dtype = path.features.dtype
    fit = Fit(
        start.weight[-1],
        start.bias[-1],
        jnp.asarray(RIDGES, dtype)[start.ridge],
        start.scale,
        start.offset,
        start.words,
        jnp.asarray(-1),
        start.loss,
        start.loss,
        jnp.full(len(PULLS), jnp.nan, dtype),
        jnp.zeros((), dtype),
    )
    if refine:
        pulls = path.unit * jnp.asarray(PULLS, dtype)
        folds = jnp.arange(path.folds + 1, dtype=path.fold.dtype)
        # No fold's moments exceed those of all items, counted for the smallest fold.
        total = jnp.sum(path.weights)
        least = jnp.min(jax.vmap(lambda k: jnp.sum(path.train(k)))(folds))
        moments = (
            total
            / jnp.maximum(least, 1.0)
            * second_moments(path.features, path.weights)
        )

        def path_of(k, begin):
            heads = penalised_path(
                begin,
                path.features,
                path.labels,
                path.train(k),
                log_b,
                active,
                pulls,
                moments,
            )
            both = jax.tree.map(
                lambda h, b: jnp.concatenate([h, b[None]]), heads, begin
            )

            def losses(head):
                return path.losses(head.logits(path.features), log_b, log_d, active)

            return heads, jax.vmap(losses)(both).T

        heads, losses = jax.vmap(path_of)(folds, SoftmaxHead(start.weight, start.bias))
        losses = path.unseen(
            losses[:-1]
        )  # (n, pulls + 1), the last column is the start's
        along = jax.vmap(path.mean_loss, in_axes=1)(losses[:, :-1])
        chosen = jnp.argmin(jnp.where(jnp.isfinite(along), along, jnp.inf))
        gain = jnp.where(path.judging > 0, losses[:, -1] - losses[:, chosen], 0.0)
        mean_gain = path.mean_loss(gain)
        spread = jnp.sum(path.judging * (gain - mean_gain) ** 2)
        margin = jnp.sqrt(spread) / jnp.maximum(jnp.sum(path.judging), 1.0)
        better = mean_gain > margin
        fit = fit._replace(
            weight=jnp.where(better, heads.weight[-1, chosen], fit.weight),
            bias=jnp.where(better, heads.bias[-1, chosen], fit.bias),
            pull=jnp.where(better, chosen, -1),
            best_loss=jnp.where(better, along[chosen], start.loss),
            path=along,
            margin=margin,
        )
    return fit._replace(weight=unfold(path.basis, fit.weight))


# -- the optimiser loop ----------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Params:
    """What gradients may change: label logits, feature map, and the head where it is
    not the user's.
    """

    theta: Any
    feature_map: Any
    head: Any


class State(NamedTuple):
    """What the loop carries."""

    params: Any
    opt_state: Any
    potential: (
        Array  # g of every target item, (n_T,): warm start of its class's transport
    )
    best: Any
    best_value: Array
    best_step: Array
    key: Array


class Info(NamedTuple):
    """What it records after every `CHECK` steps, stacked.

    Attributes:
      objective: mean objective over the steps, on their batches.
      validation: objective on the validation part.
      grad_norm: of the last step.
    """

    objective: Array
    validation: Array
    grad_norm: Array


CHECK = 10  # optimiser steps between two looks at the validation part
_INNER = 5  # Sinkhorn iterations per step, from the last step's potentials


def _draw(slots, size: int, key: Array) -> tuple[Array, Array]:
    """`(K, size)` item indices, uniform within each class without needless repeats, and
    how many count.
    """
    order, first, counts = slots
    # A random rotation of evenly spaced positions: distinct whenever the class has at
    # least `size` items.
    phase = jax.random.uniform(key, (counts.shape[0], 1))
    most = jnp.maximum(counts, 1)[:, None]
    place = (
        (jnp.arange(size, dtype=phase.dtype)[None] + phase)
        / size
        * most.astype(phase.dtype)
    )
    offset = jax.random.randint(
        jax.random.fold_in(key, 1), most.shape, 0, most, most.dtype
    )
    position = (place.astype(jnp.int32) + offset) % most
    index = order[jnp.minimum(first[:, None] + position, order.shape[0] - 1)]
    return index, counts > 0


def batch_objective(
    params: Params,
    source: Samples,
    target: Samples,
    rows: tuple[Array, Array],
    columns: tuple[Array, Array],
    potential: Array,
    candidates: Array,
    log_prior: Array,
    epsilon: Array,
    *,
    objective: str,
    iterations: int,
) -> tuple[Array, Array]:
    """The objective on class-balanced items and the updated target potentials
    `(K_T, b)`.

    Args:
      rows, columns: `(K_S, b)` source and `(K_T, b)` target items and which classes
        have any.
      potential: `(K_T, b)`, where Sinkhorn starts.
      candidates: `(K_T, q)` source classes that target class t may draw on.
      log_prior: `(K_T,)` log p_T.
    """
    head, phi = params.head, params.feature_map
    log_joint = coupling.log_coupling(params.theta, log_prior, rows[1])
    log_b = coupling.log_mixing(log_joint)
    active = lax.stop_gradient(coupling.log_source_prior(log_joint)) > -jnp.inf
    size = rows[0].shape[1]
    z = source.features[rows[0]]  # (K_S, b, d)
    logits = head.logits(z)
    u = target.features[columns[0]]  # (K_T, b, d)
    target_logits = jax.vmap(lambda x: phi.target_logits(head, x))(u)
    p = jnp.exp(log_prior)
    if objective == "score":
        log_h = jax.vmap(lambda s: terms.log_head(s, active))(target_logits)
        losses = jax.vmap(terms.loss_of_class)(log_h, log_b)
        return jnp.sum(jnp.where(p > 0, p * jnp.mean(losses, axis=1), 0.0)), potential
    mapped = jax.vmap(phi)(z) if objective == "theorem" else None

    def one(t):
        classes = candidates[t]
        s = logits[classes].reshape(-1, logits.shape[-1])
        q = jnp.repeat(jnp.exp(log_joint[t, classes]) / size, size)
        r = jnp.full(size, p[t] / size, q.dtype)
        losses = terms.loss_of_class(terms.log_head(s, active), log_b[t])
        expected = terms.expected_loss(losses, q)
        if objective == "tight":
            target_losses = terms.loss_of_class(
                terms.log_head(target_logits[t], active), log_b[t]
            )
            return terms.quantile_coupling(losses, q, target_losses, r), potential[t]
        if objective == "oscillation":

            def cost(x):
                return terms.oscillation_cost(x, target_logits[t], active)

            rows_t = s
        else:
            assert mapped is not None

            def cost(x):
                return terms.euclidean_cost(x, u[t])

            rows_t = mapped[classes].reshape(-1, u.shape[-1])
        matrix = cost(rows_t)
        found = sinkhorn(
            matrix,
            q,
            r,
            epsilon,
            start=potential[t],
            max_iterations=iterations,
            fixed=True,
        )
        moved = certify(lambda c: c, matrix[None], q[None], r, found)
        value = moved.upper if objective == "theorem" else expected + moved.upper
        return value, found.g

    parts, potentials = lax.map(one, jnp.arange(log_prior.shape[0]))
    total = jnp.sum(jnp.where(p > 0, parts, 0.0))
    if objective == "theorem":
        labels = jnp.repeat(jnp.arange(logits.shape[0]), size)
        own = terms.own_class_losses(
            logits.reshape(-1, logits.shape[-1]), labels, active
        )
        means, _ = terms.class_mean(
            own, labels, jnp.repeat(rows[1], size), logits.shape[0]
        )
        reweighted = terms.reweighted_source_loss(log_joint, means)
        total = (
            reweighted
            + coupling.label_mismatch(log_joint)
            + tau_of(phi, head, active) * total
        )
    return total, potentials


@partial(
    jax.jit,
    static_argnames=("objective", "learn", "learn_head", "batch_size", "checks"),
)
def minimise(
    start: Params,
    source: Samples,
    target: Samples,
    validation: tuple[Samples, Samples],
    candidates: Array,
    log_prior: Array,
    epsilon: Array,
    learning_rate: Array,
    key: Array,
    lipschitz: Array | None = None,
    *,
    objective: str,
    learn: str,
    learn_head: bool,
    batch_size: int,
    checks: int,
) -> tuple[Params, Array, Array, Info]:
    """Adam on the objective in one `lax.scan`; the best iterate on the validation part
    is kept, the start included.

    With `lipschitz` the head that is used, and returned, has a certified constant of at
    most that.

    Returns the best parameters, their validation objective, the step at which they were
    found (0 is the start), and Info. Batch it over restarts with `jax.vmap` over
    `start` and `key`.
    """
    num_targets, num_sources = start.theta.shape
    slots_s = class_slots(source.labels, source.mask, num_sources)
    slots_t = class_slots(target.labels, target.mask, num_targets)
    val_s, val_t = validation
    check_size = 2 * batch_size
    val_rows = _draw(
        class_slots(val_s.labels, val_s.mask, num_sources),
        check_size,
        jax.random.key(0),
    )
    val_columns = _draw(
        class_slots(val_t.labels, val_t.mask, num_targets),
        check_size,
        jax.random.key(1),
    )
    val_prior = jnp.where(val_columns[1], log_prior, -jnp.inf)
    val_prior = val_prior - jax.nn.logsumexp(val_prior)
    options: dict[str, Any] = {"objective": objective}

    def limited(params: Params) -> Params:
        return (
            params
            if lipschitz is None
            else dataclasses.replace(params, head=at_most(params.head, lipschitz))
        )

    def validate(params):
        zeros = jnp.zeros((num_targets, check_size), log_prior.dtype)
        value, _ = batch_objective(
            limited(params),
            val_s,
            val_t,
            val_rows,
            val_columns,
            zeros,
            candidates,
            val_prior,
            epsilon,
            iterations=40,
            **options,
        )
        return value

    frozen = Params(
        theta="learn" if learn == "all" else "freeze",
        feature_map=jax.tree.map(
            lambda _: "freeze" if learn == "none" else "learn", start.feature_map
        ),
        head=jax.tree.map(lambda _: "learn" if learn_head else "freeze", start.head),
    )
    optimiser = optax.chain(
        optax.clip_by_global_norm(10.0),
        optax.partition(
            {"learn": optax.scale_by_adam(), "freeze": optax.set_to_zero()}, frozen
        ),
    )
    total_steps = max(1, checks * CHECK)

    def step(carry, index):
        params, opt_state, potential, key = carry
        key, sub = jax.random.split(key)
        rows = _draw(slots_s, batch_size, sub)
        columns = _draw(slots_t, batch_size, jax.random.fold_in(sub, 7))

        def loss(params):
            return batch_objective(
                limited(params),
                source,
                target,
                rows,
                columns,
                potential[columns[0]],
                candidates,
                log_prior,
                epsilon,
                iterations=_INNER,
                **options,
            )

        (value, found), grad = jax.value_and_grad(loss, has_aux=True)(params)
        potential = potential.at[columns[0].ravel()].set(found.ravel())
        norm = optax.tree_utils.tree_norm(grad)
        # A step whose gradient is not finite is skipped rather than allowed to spoil
        # what was learned.
        grad = jax.tree.map(lambda g: jnp.where(jnp.isfinite(norm), g, 0.0), grad)
        with jax.numpy_dtype_promotion("standard"):  # optax counts steps in integers
            update, opt_state = optimiser.update(grad, opt_state, params)
        rate = (
            learning_rate
            * 0.5
            * (1 + jnp.cos(jnp.pi / total_steps * index.astype(learning_rate.dtype)))
        )
        params = optax.apply_updates(
            params, jax.tree.map(lambda v: -rate.astype(v.dtype) * v, update)
        )
        return (params, opt_state, potential, key), (value, norm)

    def check(state: State, number):
        carry = (state.params, state.opt_state, state.potential, state.key)
        (params, opt_state, potential, key), (values, norms) = lax.scan(
            step, carry, number * CHECK + jnp.arange(CHECK)
        )
        value = validate(params)
        better = value < state.best_value
        best = jax.tree.map(
            lambda new, old: jnp.where(better, new, old), params, state.best
        )
        state = State(
            params,
            opt_state,
            potential,
            best,
            jnp.where(better, value, state.best_value),
            jnp.where(better, (number + 1) * CHECK, state.best_step),
            key,
        )
        return state, Info(jnp.mean(values), value, norms[-1])

    potential = jnp.zeros(target.features.shape[0], log_prior.dtype)
    initial: Any = start
    begin = State(
        start,
        optimiser.init(initial),
        potential,
        start,
        validate(start),
        jnp.asarray(0),
        key,
    )
    final, info = lax.scan(check, begin, jnp.arange(checks))
    return limited(final.best), final.best_value, final.best_step, info
