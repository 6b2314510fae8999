"""Fit the logit-affine map in closed form (docs/theory.md, section 3.12)."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from tta_jax._internal.typing import Array
from tta_jax.core import coupling
from tta_jax.core.heads import SoftmaxHead
from tta_jax.core.linalg import matmul, solve_positive
from tta_jax.core.losses import expected_loss, mixed_loss
from tta_jax.fitting.floor import choose_floor
from tta_jax.fitting.logistic_regression import penalised_path, second_moments
from tta_jax.tasks.task import Samples

RIDGES = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
SCALES = tuple(0.25 * 1.35**k for k in range(14))
PROXIMAL_WEIGHTS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


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
      labels, weights, selection_weights: `(n,)`; `selection_weights` are the weights of
        the items by which choices are judged.
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
    selection_weights: Array
    fold: Array
    unit: Array

    @property
    def folds(self) -> int:
        return self.beta.shape[0] - 1

    def train(self, k: Array) -> Array:
        """Weights of the items that fold k learns from; `k = folds` learns from all."""
        return jnp.where(self.fold != k, self.weights, 0.0)

    def out_of_fold(self, values: Array) -> Array:
        """`(n, ...)` from `(folds, n, ...)`: every item by the fold that left it
        out.
        """
        numbers = jnp.arange(self.folds, dtype=self.fold.dtype)
        inside = (self.fold[None] == numbers[:, None]).reshape(
            values.shape[:2] + (1,) * (values.ndim - 2)
        )
        return jnp.sum(jnp.where(inside, values, 0.0), axis=0)

    def smoothed_losses(
        self, logits: Array, log_b: Array, log_d: Array, active: Array
    ) -> Array:
        """Smooth the cross-validated losses by a pseudo-observation, `(n,)` nats.

        Choices are made by their mean: each item's loss under `h'''`, with its share of
        the pseudo-observation's. That is each of the selecting items with equal
        probability, its source class drawn from D and its target class from B
        (docs/theory.md, section 3.12). Without it, a few items that are all classified
        correctly call for logits without limit.

        Args:
          logits: `(n, K)`, of every item by the fold that left it out.
          log_b: `(K_T, K)`, log B.
          log_d: `(K,)`, log D.
          active: `(K,)` bool.
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
        number = jnp.sum(self.selection_weights)
        return (number * mixed_loss(logits, log_b[self.labels], active) + drawn) / (
            number + 1.0
        )

    def mean_loss(self, losses: Array) -> Array:
        """Mean over the judged items."""
        return expected_loss(losses, self.selection_weights) / jnp.maximum(
            jnp.sum(self.selection_weights), 1.0
        )


def expand_weights(basis: Array | None, weight: Array) -> Array:
    """Weights `(k, p)` in a path's basis as weights of the features that were given,
    `(k, d)`.
    """
    return weight if basis is None else matmul(weight, basis.T)


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
    mean = matmul(weights, features) / jnp.maximum(jnp.sum(weights), 1.0)
    spread = jnp.sum(weights[:, None] * (features - mean[None]) ** 2) / jnp.maximum(
        jnp.sum(weights), 1.0
    )
    dim = jnp.asarray(target.features.shape[1] if dim is None else dim)
    unit = jnp.maximum(spread / dim.astype(dtype), jnp.finfo(dtype).tiny)
    ridges = unit * jnp.asarray(RIDGES, dtype)

    def solve_fold(k):
        mine = jnp.where(fold != k, weights, 0.0)
        total = jnp.maximum(jnp.sum(mine), 1e-12)
        mean_x, mean_y = matmul(mine, features) / total, matmul(mine, onehot) / total
        centred = (features - mean_x[None]) * jnp.sqrt(mine)[:, None]
        gram = matmul(centred.T, centred) / total
        mine_y = (onehot - mean_y[None]) * jnp.sqrt(mine)[:, None]
        cross = matmul(centred.T, mine_y) / total

        eye = jnp.eye(gram.shape[0], dtype=dtype)
        beta = lax.map(lambda ridge: solve_positive(gram + ridge * eye, cross), ridges)
        return beta, mean_y[None] - matmul(mean_x, beta)

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


class ClosedFormChoice(NamedTuple):
    """The closed form's choices of least `RidgePath.smoothed_losses` over inner folds,
    and the heads they give.

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
def choose_closed_form(
    path: RidgePath,
    words: Float[Array, "c K_T k"],
    log_d: Float[Array, " k"],
    log_b: Float[Array, "K_T k"],
    active: Bool[Array, " k"],
) -> ClosedFormChoice:
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
        by_fold = matmul(path.features[None], path.beta[:-1, ridge])
        coded = (
            path.out_of_fold(by_fold + path.intercept[:-1, ridge, None]) @ words[kind]
        )

        def at(scale, offset):
            return path.mean_loss(
                path.smoothed_losses(
                    scale * coded + offset * log_d[None], log_b, log_d, active
                )
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
    weight = jnp.swapaxes(
        scale * (matmul(path.beta[:, ridge], words[kind][None])), 1, 2
    )
    bias = (
        scale * (matmul(path.intercept[:, ridge], words[kind])) + offset * log_d[None]
    )
    return ClosedFormChoice(weight, bias, table[best, at], ridge, kind, scale, offset)


class RidgeProbe(NamedTuple):
    """What the target's labels give without any source.

    Attributes:
      head: `(K_T, d)`.
      logits: `(n, K_T)`, of every item by the inner fold that left it out.
    """

    head: SoftmaxHead
    logits: Array


def ridge_probe(path: RidgePath, log_prior: Array) -> RidgeProbe:
    """Fit a ridge probe of the target.

    Args:
      log_prior: `(K_T,)`; -inf for a class without items.
    """
    start = choose_closed_form(path, *_probe_words(log_prior))
    return _probe_of(path, start, log_prior)


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
def _probe_of(path: RidgePath, start: ClosedFormChoice, log_prior: Array) -> RidgeProbe:
    # Classes without items take no probability.
    bias = jnp.where(log_prior > -jnp.inf, start.bias, -jnp.inf)
    by_fold = matmul(path.features[None], jnp.swapaxes(start.weight[:-1], 1, 2))
    return RidgeProbe(
        SoftmaxHead(expand_weights(path.basis, start.weight[-1]), bias[-1]),
        path.out_of_fold(by_fold + bias[:-1, None]),
    )


class ClosedFormFit(NamedTuple):
    """What the closed form and its refinement found.

    Attributes:
      weight, bias: M `(K_S, d)` and m `(K_S,)`.
      ridge, scale, offset: the closed form's choices; offset 1 adds `log D` to the
        logits.
      words: 0 where the code words are the source's mean logits, 1 where equidistant
        ones did better.
      pull: index into `PULLS` of the refinement, -1 where the start was kept.
      start_loss, best_loss: mean `RidgePath.smoothed_losses` over the inner folds, of
        the start and of what was chosen, nats.
      path: the same along `PULLS`, `(len(PULLS),)`; NaN where it was not asked for.
      margin: standard error of the improvement.
      floor: share of the target prior mixed into the classifier.
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
    floor: Array


def closed_form(
    path: RidgePath,
    log_joint: Float[Array, "K_T K_S"],
    source_of: Int[Array, " K_T"],
    mean_logits: Float[Array, "K_S K_S"],
    floor: Float[Array, ""],
    *,
    refine: bool = True,
) -> ClosedFormFit:
    """Fit the map in closed form, then refine it by penalised likelihood.

    See docs/theory.md, section 3.12.

    Ridge regression is linear in its targets, so one solve for one-hot labels serves
    every source: the logits are `scale * (u R + r) S` with code words S, one row for
    each target class: the mean logits of its source class, or equidistant ones, which
    lose what the source says about similar classes but not what the target says. Ridge,
    words, scale and offset are those of least smoothed cross-validated loss of `h'''`
    (`RidgePath.smoothed_losses`). The refinement minimises the mean loss of `h'''`
    on what it learns from plus `pull / 2 ||M - M_0||^2`, along a path of falling pulls,
    and is adopted only where the losses by which choices are made improve by more than
    one standard error. The floor is the one of least loss over the inner folds.

    Args:
      path: of the target's learning part.
      log_joint: `(K_T, K_S)`.
      source_of: `(K_T,)` assigned source class.
      mean_logits: `(K_S, K_S)`, from `class_mean_logits`.
      floor: the floor wanted; NaN to choose it.
      refine: whether to refine the closed form.
    """
    words, log_d, log_b, active = _code_words(log_joint, source_of, mean_logits)
    start = choose_closed_form(path, words, log_d, log_b, active)
    fit, by_fold = _chosen(path, start, log_d, log_b, active, refine=refine)
    logits = path.out_of_fold(
        jax.vmap(lambda head: head.logits(path.features))(by_fold)
    )
    losses = mixed_loss(logits, log_b[path.labels], active)
    log_p = coupling.log_target_prior(log_joint)[path.labels]
    return fit._replace(
        weight=expand_weights(path.basis, fit.weight),
        floor=choose_floor(losses, log_p, path.selection_weights, floor),
    )


@jax.jit
def _code_words(log_joint: Array, source_of: Array, mean_logits: Array):
    """Candidates `(2, K_T, K_S)`, `log D`, `log B` and the active classes."""
    log_d = coupling.log_source_prior(log_joint)
    active = log_d > -jnp.inf
    share = active.astype(mean_logits.dtype) / jnp.sum(active, dtype=mean_logits.dtype)
    equidistant = jnp.eye(log_joint.shape[1], dtype=mean_logits.dtype) - share[None]
    # Rows of padding must not count.
    target_mask = jnp.any(log_joint > -jnp.inf, axis=1)
    square = jnp.where(target_mask, jnp.sum(mean_logits[source_of] ** 2, axis=1), 0.0)
    size = jnp.sqrt(jnp.sum(square) / jnp.sum(target_mask, dtype=square.dtype))
    words = jnp.stack([mean_logits[source_of], size * equidistant[source_of]])
    return words, log_d, coupling.log_mixing(log_joint), active


@partial(jax.jit, static_argnames=("refine",))
def _chosen(
    path: RidgePath,
    start: ClosedFormChoice,
    log_d: Array,
    log_b: Array,
    active: Array,
    *,
    refine: bool,
) -> tuple[ClosedFormFit, SoftmaxHead]:
    """The start, or the point of the refinement's path that the inner folds prefer by
    more than a standard error; in the path's basis, the floor not chosen yet.

    Returns:
      The fit, and the heads of the folds left out.
    """
    dtype = path.features.dtype
    fit = ClosedFormFit(
        start.weight[-1],
        start.bias[-1],
        jnp.asarray(RIDGES, dtype)[start.ridge],
        start.scale,
        start.offset,
        start.words,
        jnp.asarray(-1),
        start.loss,
        start.loss,
        jnp.full(len(PROXIMAL_WEIGHTS), jnp.nan, dtype),
        jnp.zeros((), dtype),
        jnp.zeros((), dtype),
    )
    by_fold = SoftmaxHead(start.weight[:-1], start.bias[:-1])
    if refine:
        pulls = path.unit * jnp.asarray(PROXIMAL_WEIGHTS, dtype)
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
                return path.smoothed_losses(
                    head.logits(path.features), log_b, log_d, active
                )

            return heads, jax.vmap(losses)(both).T

        heads, losses = jax.vmap(path_of)(folds, SoftmaxHead(start.weight, start.bias))
        losses = path.out_of_fold(
            losses[:-1]
        )  # (n, pulls + 1), the last column is the start's
        along = jax.vmap(path.mean_loss, in_axes=1)(losses[:, :-1])
        chosen = jnp.argmin(jnp.where(jnp.isfinite(along), along, jnp.inf))
        gain = jnp.where(
            path.selection_weights > 0, losses[:, -1] - losses[:, chosen], 0.0
        )
        mean_gain = path.mean_loss(gain)
        spread = jnp.sum(path.selection_weights * (gain - mean_gain) ** 2)
        margin = jnp.sqrt(spread) / jnp.maximum(jnp.sum(path.selection_weights), 1.0)
        better = mean_gain > margin
        fit = fit._replace(
            weight=jnp.where(better, heads.weight[-1, chosen], fit.weight),
            bias=jnp.where(better, heads.bias[-1, chosen], fit.bias),
            pull=jnp.where(better, chosen, -1),
            best_loss=jnp.where(better, along[chosen], start.loss),
            path=along,
            margin=margin,
        )
        by_fold = jax.tree.map(
            lambda h, b: jnp.where(better, h[:-1, chosen], b), heads, by_fold
        )
    return fit, by_fold
