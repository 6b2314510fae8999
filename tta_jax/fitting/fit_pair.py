"""Fit everything of a pair on its learning parts, on the device: arrays in, arrays out.

`fit_source` does once what depends on the source alone. `fit_pairs` takes one target
and several sources: what depends on the target alone is computed once, and a single
pair is a batch of one.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from tta_jax._internal.typing import Array, ArrayLike
from tta_jax.core import coupling
from tta_jax.core.heads import SoftmaxHead, empty_head
from tta_jax.core.linalg import matmul
from tta_jax.fitting.assignment import (
    ClassAssignment,
    SourceFit,
    candidate_labels,
    match_classes,
)
from tta_jax.fitting.closed_form import (
    ClosedFormFit,
    RidgePath,
    class_mean_logits,
    closed_form,
    expand_weights,
    ridge_path,
    ridge_probe,
)
from tta_jax.fitting.logistic_regression import (
    minimise_cross_entropy,
    refit_head,
    regularization_path,
)
from tta_jax.fitting.prepare import INNER_FOLDS, SourceArrays, TargetArrays
from tta_jax.fitting.relatedness import (
    Branches,
    LabelledLogits,
    StarFit,
    branches,
    fit_star,
)
from tta_jax.tasks.task import Samples

# Steps with which a head is fitted to all items, from one fitted to most of them; to
# other class weights; and to other class weights under a bound on its constant.
_FIT_STEPS, _REFIT_STEPS, _LIMITED_STEPS = 50, 30, 30
_FOLD_STEPS = 30  # from no weights, for an inner fold


class PairSource(NamedTuple):
    """A fitted source and its items, as `fit_pairs` takes it.

    Attributes:
      features: `(n, p)`; where there are fewer items than features, in a basis of
        their span.
      basis: `(d, p)` or None, that basis: every head fitted to the items lies in it.
      labels, mask: `(n,)`.
      fit: of `fit_source`.
    """

    features: ArrayLike
    basis: ArrayLike | None
    labels: ArrayLike
    mask: ArrayLike
    fit: SourceFit

    @classmethod
    def of(cls, x: SourceArrays, fit: SourceFit) -> PairSource:
        """Reduce the features to their span; on the host."""
        features, basis = np.asarray(x.features), None
        if features.shape[0] < features.shape[1]:
            finite = np.isfinite(features)
            basis, upper = np.linalg.qr(np.where(finite, features, 0).T)
            # Features that overflowed fail in their own pairs, not here.
            features = np.where(finite.all(), upper.T, np.nan).astype(features.dtype)
        return cls(features, basis, x.labels, x.mask, fit)


class PairFit(NamedTuple):
    """What was fitted to a pair; source classes as in `ClassAssignment`, C of them.

    Attributes:
      head: the source head, `(C, d)` and `(C,)`.
      classes: which source classes are mapped to which target classes.
      closed_form: the logit-affine map, its choices and losses; None where no map was
        asked for.
      star: the star, with an assignment of its own.
    """

    head: SoftmaxHead
    classes: ClassAssignment
    closed_form: ClosedFormFit | None
    star: StarFit


@jax.jit
def fit_source(x: SourceArrays) -> SourceFit:
    """Fit the head, its weight decay chosen by an inner fold; and one for each fold."""
    num_classes, dtype = x.usable.shape[0], x.features.dtype
    counts = jax.ops.segment_sum(x.mask.astype(jnp.int32), x.labels, num_classes)
    present = (counts > 0) & x.usable
    mask = x.mask & present[x.labels]
    zeros = empty_head(num_classes, x.features.shape[1], dtype)

    def number(flags):
        return flags.astype(dtype)

    def parts(k):
        """What learns and what is judged while fold k is left out."""
        train, held = mask & (x.fold != k), mask & (x.fold == k)
        trained = jax.ops.segment_max(number(train), x.labels, num_classes) > 0
        return number(train), held & trained[x.labels], trained

    # The decay is chosen by one fold.
    folds = jnp.arange(INNER_FOLDS, dtype=x.fold.dtype)
    train, held, trained = jax.vmap(parts)(folds)
    path, losses = regularization_path(
        x.features, x.labels, train[0], number(held[0]), trained[0], x.decays, zeros
    )
    finite = jnp.isfinite(losses)
    best = jnp.argmin(jnp.where(finite, losses, jnp.inf))
    best = jnp.where(jnp.any(finite), best, 1)
    # Decays of m items divided by n / m, as a Gaussian prior's are.
    share = jnp.sum(train[0]) / jnp.maximum(jnp.sum(number(mask)), 1.0)
    l2 = jnp.where(jnp.isnan(x.l2), x.decays[best] * share, x.l2)
    # A decay that was given starts at the nearest one.
    distance = jnp.abs(jnp.log(x.decays * share / x.l2))
    nearest = jnp.where(jnp.isnan(x.l2), best, jnp.argmin(distance))
    first = jax.tree.map(lambda v: v[nearest], path)
    found = refit_head(
        first, x.features, x.labels, number(mask), present, l2, steps=_FIT_STEPS
    )

    def leave_out(train, trained):
        """A head that has not seen the fold, nor begins at one that has."""
        return refit_head(
            zeros,
            x.features,
            x.labels,
            train,
            trained,
            x.decays[nearest],
            steps=_FOLD_STEPS,
        )

    others = jax.vmap(leave_out)(train[1:], trained[1:])
    left_out = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, others)
    head = jax.tree.map(
        lambda mine, ours: jnp.where(x.given, mine, ours), x.head, found
    )

    def logits_of(k, head, trained):
        logits = head.logits(x.features)
        # A class that the fold does not know is the least probable one.
        known = jnp.where(trained, logits, jnp.min(logits, axis=1, keepdims=True))
        return jnp.where((x.fold == k)[:, None], known, 0.0)

    logits = jnp.sum(jax.vmap(logits_of)(folds, left_out, trained), axis=0)
    mine = jax.ops.segment_sum(number(mask), x.labels, num_classes)
    return SourceFit(
        weight=head.weight,
        bias=head.bias,
        present=present,
        log_prior=jnp.log(jnp.maximum(mine, 1e-30) / jnp.maximum(jnp.sum(mine), 1.0)),
        refits=~x.given,
        l2=l2,
        logits=jnp.where(x.given, x.head.logits(x.features), logits),
        judged=jnp.where(x.given, mask, jnp.any(held, axis=0)),
    )


def target_path(target: TargetArrays) -> RidgePath:
    """Fit the ridge regressions of the target's one-hot labels."""
    return ridge_path(
        Samples(target.features, target.labels, target.mask),
        target.judged,
        target.fold,
        target.dim,
        inner_folds=INNER_FOLDS,
        num_targets=target.log_prior.shape[0],
    )


def class_means(target: TargetArrays) -> Float[Array, "K_T d"]:
    """Mean features of each class, `(K_T, d)`; zeros for a class without items."""
    size = target.log_prior.shape[0]
    mask = target.mask.astype(target.features.dtype)
    counts = jax.ops.segment_sum(mask, target.labels, size)
    rows = jnp.where(target.mask[:, None], target.features, 0.0)
    sums = jax.ops.segment_sum(rows, target.labels, size)
    return sums / jnp.maximum(counts, 1.0)[:, None]


@partial(jax.jit, static_argnames=("closed", "refine"))
def fit_pairs(
    sources: PairSource,
    target: TargetArrays,
    lipschitz: Float[Array, ""] | None = None,
    ranks: Float[Array, " K_S"] | None = None,
    *,
    closed: bool = True,
    refine: bool = True,
) -> tuple[PairFit, SoftmaxHead]:
    """Fit one target with several sources.

    Args:
      sources: with a leading axis.
      target: the learning part.
      lipschitz: scalar bound on the certified constant of a fitted head, or None.
      ranks: random numbers that assign classes; see `match_classes`.
      closed: whether to fit the logit-affine map in closed form.
      refine: whether to refine it.

    Returns:
      The fits with a leading axis, and the source-free ridge probe, `(K_T, d)`.
    """
    path, means = target_path(target), class_means(target)
    probe = ridge_probe(path, target.log_prior)
    logits = LabelledLogits(probe.logits, target.labels, target.judged)
    placed = branches(logits, target.log_prior > -jnp.inf)

    def one(source):
        return _fit_pair(
            source,
            target,
            path,
            means,
            placed,
            lipschitz,
            ranks,
            closed=closed,
            refine=refine,
        )

    if len(sources.labels) == 1:
        # A batch axis of one would make the program a fifth larger.
        alone = one(jax.tree.map(lambda v: v[0], sources))
        return jax.tree.map(lambda v: v[None], alone), probe.head
    return jax.vmap(one)(sources), probe.head


def _fit_pair(
    source: PairSource,
    target: TargetArrays,
    path: RidgePath,
    means: Array,
    placed: Branches,
    lipschitz: Array | None,
    ranks: Array | None,
    *,
    closed: bool,
    refine: bool,
) -> PairFit:
    classes = match_classes(source.fit, means, target.log_prior, ranks)
    samples = candidate_samples(source, classes)
    head, inside = _refit(source, classes, samples, lipschitz)
    fit = None
    if closed:
        size = classes.source_class.shape[0]
        mean_logits = class_mean_logits(
            inside, samples, classes.source_mask, num_classes=size
        )
        logits = coupling.assignment_logits(classes.source_of, size)
        log_joint = coupling.log_coupling(logits, target.log_prior)
        fit = closed_form(
            path,
            log_joint,
            classes.source_of,
            mean_logits,
            jnp.asarray(target.floor),
            refine=refine,
        )
    mine = LabelledLogits(source.fit.logits, source.labels, source.fit.judged)
    star = fit_star(mine, source.fit, placed, classes, target.log_prior)
    return PairFit(head, classes, fit, star)


def candidate_samples(source: PairSource, classes: ClassAssignment) -> Samples:
    """Label the source's items by candidate; those of other classes are masked out."""
    labels, mask = (jnp.asarray(v) for v in (source.labels, source.mask))
    labels, mask = candidate_labels(labels, mask, source.fit, classes)
    return Samples(source.features, labels, mask)


def _refit(
    source: PairSource,
    classes: ClassAssignment,
    samples: Samples,
    lipschitz: Array | None,
) -> tuple[SoftmaxHead, SoftmaxHead]:
    """Refit the head under the prior D, unless it is the user's.

    Returns:
      The head on the features, and in the basis of the items.
    """
    fit, mask = source.fit, classes.source_mask
    start = SoftmaxHead(
        fit.weight[classes.source_class],
        fit.bias[classes.source_class] + classes.prior_log_ratio,
    )
    inside = start
    if source.basis is not None:
        inside = SoftmaxHead(matmul(start.weight, source.basis), start.bias)
    prior = jnp.where(mask, jnp.exp(classes.log_d), 0.0)
    weights = item_weights(samples.labels, samples.mask, mask, prior)
    arguments = (inside, samples.features, samples.labels, weights, mask, fit.l2)
    if lipschitz is None:
        found = refit_head(*arguments, steps=_REFIT_STEPS)
    else:
        found = minimise_cross_entropy(*arguments, lipschitz, steps=_LIMITED_STEPS)
    fitted = jax.tree.map(
        lambda ours, given: jnp.where(fit.refits, ours, given), found, inside
    )
    weight = expand_weights(source.basis, fitted.weight)
    head = SoftmaxHead(jnp.where(fit.refits, weight, start.weight), fitted.bias)
    return head, fitted


def item_weights(
    labels: Int[Array, " n"],
    mask: Bool[Array, " n"],
    active: Bool[Array, " K"],
    prior: Float[Array, " K"],
) -> Float[Array, " n"]:
    """Weigh items so that every active class has its share of `prior`, `(n,)`."""
    counts = jax.ops.segment_sum(mask.astype(prior.dtype), labels, prior.shape[0])
    shares = prior / jnp.maximum(counts, 1)
    return jnp.where(mask & active[labels], shares[labels], 0.0)
