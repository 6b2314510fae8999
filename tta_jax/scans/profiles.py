"""What depends on one task alone, computed once and shared by all its pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tta_jax._internal.padding import geometric_bucket, pad_rows
from tta_jax._internal.typing import Array
from tta_jax.config import Config
from tta_jax.core.heads import SoftmaxHead, empty_head
from tta_jax.fitting.assignment import separation_order
from tta_jax.fitting.closed_form import (
    RidgePath,
    class_mean_logits,
    ridge_path,
    ridge_probe,
)
from tta_jax.fitting.fit_pair import INNER_FOLDS, inner_folds
from tta_jax.fitting.logistic_regression import L2_GRID, refit_head, regularization_path
from tta_jax.tasks.splits import Seed, fold_in_seed, subsample_per_class
from tta_jax.tasks.standardizer import Standardizer
from tta_jax.tasks.task import Samples, Task


class SourceProfile(NamedTuple):
    """What a pair needs of its source, for one part of the hold-out. K classes, d
    features, room for c held-out items a class.

    Attributes:
      weight, bias: the head on standardised features, `(K, d)` and `(K,)`.
      order: `(K,)` int32, classes in the order in which they are taken; those without
        items last.
      present: scalar int32, how many have items to learn from and to hold out.
      mean_logits: `(K, K)`, mean logits of each class (rows) on the learning part.
      log_prior: `(K,)`, class shares of the learning part.
      reweigh: scalar bool, whether the head is ours: a fitted head follows the class
        prior, one that was given stays as it is.
      l2: weight decay of a fitted head.
      held_logits: `(K, c, K)`, logits of the held-out items, by class.
      held_counts: `(K,)` int32.
    """

    weight: Any
    bias: Any
    order: Any
    present: Any
    mean_logits: Any
    log_prior: Any
    reweigh: Any
    l2: Any
    held_logits: Any
    held_counts: Any


class TargetProfile(NamedTuple):
    """What a pair needs of its target, for one part of the hold-out. n items to learn
    from, m held out, R ridges.

    Attributes:
      means: `(K, d)`, class means of the standardised features, learning part.
      log_prior: `(K,)`, class shares of the learning part; -inf for padding.
      predictions: `(K, R n)`, ridge predictions of the one-hot labels, every item by
        the inner fold that left it out.
      labels, weights: `(n,)`; the weights, 0 for padding and for items without a fold,
        sum to 1.
      held: `(R, K, m)`, ridge predictions of the held-out items from the whole learning
        part.
      held_labels, held_mask: `(m,)`.
      probe_loss, probe_accuracy: of the source-free ridge probe on the held-out items.
    """

    means: Any
    log_prior: Any
    predictions: Any
    labels: Any
    weights: Any
    held: Any
    held_labels: Any
    held_mask: Any
    probe_loss: Any
    probe_accuracy: Any


_FIT_STEPS = (
    50  # with which a head is fitted to all items, from one fitted to most of them
)
# held-out source items of a class that are used at most: bounds hold for any sample of
# the source
HELD_PER_CLASS = 256


class SplitPart(NamedTuple):
    """Indices of the items that learn and that are held out, as a target and, thinned
    to a few of each class, as a source.

    Counts `(K,)` of labelled items of each class: what a source learns from and holds
    out, what a target holds out and learns from.
    """

    learn: np.ndarray
    held: np.ndarray
    source_learn: np.ndarray
    source_held: np.ndarray
    source_learn_counts: np.ndarray
    source_counts: np.ndarray
    target_counts: np.ndarray
    learn_counts: np.ndarray


class ProfileShape(NamedTuple):
    """Padded sizes that the profiles of a group share.

    Attributes:
      classes, dim: K and d.
      items: of the learning part.
      held: held-out items; of a source those of one class.
    """

    classes: int
    dim: int
    items: int
    held: int


def content_hash(task: Task) -> str:
    """A hash of what a task holds: features, labels, class names, groups."""
    groups = [] if task.groups is None else [task.groups]
    return array_hash(
        task.features, task.labels, task.labelled, *groups, more=repr(task.class_names)
    )


def array_hash(*arrays: Any, more: str = "") -> str:
    """A hash of arrays, and of a text."""
    made = hashlib.blake2b(digest_size=16)
    for array in map(np.asarray, arrays):
        made.update(f"{array.dtype} {array.shape}".encode())
        made.update(np.ascontiguousarray(array).tobytes())
    made.update(more.encode())
    return made.hexdigest()


def split_parts(
    task: Task, config: Config, seed: Seed, content: str
) -> list[SplitPart]:
    """The hold-out, or every fold of the cross-fitting.

    Raises:
      ValueError: if nothing can be held out.
    """
    mine = fold_in_seed(seed, *(int(content[i : i + 8], 16) for i in range(0, 32, 8)))
    deal = fold_in_seed(mine, 0)
    pairs = (
        list(task.folds(config.folds, deal))
        if config.folds
        else [task.split(config.holdout, deal)]
    )
    rng = np.random.default_rng(fold_in_seed(mine, 1))
    labels, known, found = np.asarray(task.labels), np.asarray(task.labelled), []
    for learn, held in pairs:
        learn_s, held_s = (
            subsample_per_class(task, index, most, rng)
            for index, most in (
                (learn, config.source_per_class or len(task)),
                (held, HELD_PER_CLASS),
            )
        )

        def counts(index):
            return np.bincount(labels[index[known[index]]], minlength=task.num_classes)

        found.append(
            SplitPart(
                learn,
                held,
                learn_s,
                held_s,
                *map(counts, (learn_s, held_s, held, learn)),
            )
        )
    return found


def source_shape(
    classes: int, dim: int, parts: Sequence[SplitPart], steps: int
) -> ProfileShape:
    """Padded sizes of a source; `steps` of the ladder."""
    most = max(int(p.source_counts.max()) for p in parts)
    return ProfileShape(
        *(
            geometric_bucket(n, steps)
            for n in (classes, dim, max(len(p.source_learn) for p in parts), most)
        )
    )


def target_shape(
    classes: int, dim: int, parts: Sequence[SplitPart], steps: int
) -> ProfileShape:
    """Padded sizes of a target."""
    return ProfileShape(
        *(
            geometric_bucket(n, steps)
            for n in (
                classes,
                dim,
                max(len(p.learn) for p in parts),
                max(len(p.held) for p in parts),
            )
        )
    )


class SourceInput(NamedTuple):
    """One part of a source as `source_profile` takes it; `given` says whether the head
    is the user's.
    """

    features: Any
    labels: Any
    mask: Any
    judges: Any
    held: Any
    held_counts: Any
    decays: Any
    l2: Any
    head: SoftmaxHead
    given: Any


def source_input(
    task: Task,
    part: SplitPart,
    shape: ProfileShape,
    config: Config,
    head: SoftmaxHead | None,
    seed: Seed,
) -> SourceInput:
    """The host's share: standardised features, padded."""
    features, labels = np.asarray(task.features), np.asarray(task.labels)
    learn, held = part.source_learn, part.source_held
    plain = head is not None or not config.standardize
    scaler = (
        Standardizer.identity(task.dim, features.dtype)
        if plain
        else Standardizer.fit(features[learn])
    )
    rows = scaler(features[learn])
    judges = np.zeros(len(learn), bool)
    if len(learn) >= 8:
        judges[np.random.default_rng(seed).permutation(len(learn))[3::4]] = True
    counts = np.bincount(labels[held], minlength=shape.classes).astype(np.int32)
    by_class = np.zeros((shape.classes, shape.held, shape.dim), features.dtype)
    for k in np.flatnonzero(counts):
        by_class[k, : counts[k], : task.dim] = scaler(features[held[labels[held] == k]])
    with np.errstate(
        over="ignore"
    ):  # features that are far too large fail on the device, in their own pairs
        decays = np.asarray(L2_GRID) * max(
            float(rows.var(axis=0, dtype=np.float64).mean()), 1e-30
        )
        decays = decays.astype(features.dtype)
    mine = (
        empty_head(shape.classes, shape.dim, features.dtype)
        if head is None
        else SoftmaxHead(
            _pad(np.asarray(head.weight, features.dtype), (shape.classes, shape.dim)),
            _pad(np.asarray(head.bias, features.dtype), (shape.classes,)),
        )
    )
    return SourceInput(
        _pad(rows, (shape.items, shape.dim)),
        pad_rows(labels[learn], shape.items),
        pad_rows(np.ones(len(learn), bool), shape.items),
        pad_rows(judges, shape.items),
        by_class,
        counts,
        decays,
        np.asarray(np.nan if config.l2 is None else config.l2, features.dtype),
        mine,
        np.asarray(head is not None),
    )


def _pad(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.pad(
        values,
        [(0, wanted - size) for size, wanted in zip(values.shape, shape, strict=True)],
    )


def source_profile(x: SourceInput) -> SourceProfile:
    """Head (weight decay by hold-out, then fitted to all items), class order, mean
    logits, held-out logits.
    """
    num_classes, dtype = x.held_counts.shape[0], x.features.dtype
    present = (
        jax.ops.segment_sum(x.mask.astype(jnp.int32), x.labels, num_classes) > 0
    ) & (x.held_counts > 0)
    mask = x.mask & present[x.labels]
    train = mask & ~x.judges
    trained = jax.ops.segment_sum(train.astype(jnp.int32), x.labels, num_classes) > 0
    judged = mask & x.judges & trained[x.labels]
    zeros = empty_head(num_classes, x.features.shape[1], dtype)

    def number(flags):
        return flags.astype(dtype)

    heads, losses = regularization_path(
        x.features, x.labels, number(train), number(judged), trained, x.decays, zeros
    )
    best = jnp.where(
        jnp.any(jnp.isfinite(losses)),
        jnp.argmin(jnp.where(jnp.isfinite(losses), losses, jnp.inf)),
        1,
    )
    # Decays of m items divided by n / m, as a Gaussian prior's are.
    share = jnp.sum(number(train)) / jnp.maximum(jnp.sum(number(mask)), 1.0)
    l2 = jnp.where(jnp.isnan(x.l2), x.decays[best] * share, x.l2)
    start = jax.tree.map(lambda v: v[best], heads)
    found = refit_head(
        start, x.features, x.labels, number(mask), present, l2, steps=_FIT_STEPS
    )
    head = jax.tree.map(
        lambda mine, ours: jnp.where(x.given, mine, ours), x.head, found
    )
    everyone = jnp.ones(num_classes, bool)
    counts = jax.ops.segment_sum(number(mask), x.labels, num_classes)
    return SourceProfile(
        weight=head.weight,
        bias=head.bias,
        order=separation_order(x.features, x.labels, mask, num_classes=num_classes),
        present=jnp.sum(present, dtype=jnp.int32),
        mean_logits=class_mean_logits(
            head, Samples(x.features, x.labels, mask), everyone, num_classes=num_classes
        ),
        log_prior=jnp.log(
            jnp.maximum(counts, 1e-30) / jnp.maximum(jnp.sum(counts), 1.0)
        ),
        reweigh=~x.given,
        l2=l2,
        held_logits=head.logits(x.held),
        held_counts=x.held_counts,
    )


class TargetInput(NamedTuple):
    """One part of a target as `target_profile` takes it; `dim` is the number of
    features that are not padding.
    """

    features: Any
    labels: Any
    mask: Any
    fold: Any
    held: Any
    held_labels: Any
    held_mask: Any
    log_prior: Any
    dim: Any


def target_input(
    task: Task, part: SplitPart, shape: ProfileShape, config: Config, seed: Seed
) -> TargetInput:
    """The host's share: standardised features, padded, and inner folds."""
    learning = task.take(part.learn)
    features = np.asarray(learning.features)
    scaler = (
        Standardizer.fit(features, clip=config.clip)
        if config.standardize
        else Standardizer.identity(task.dim, features.dtype)
    )
    fold, _ = inner_folds(learning, seed)
    known = np.asarray(learning.labelled)
    with np.errstate(divide="ignore"):
        log_prior = np.log(
            np.pad(learning.prior, (0, shape.classes - task.num_classes))
        ).astype(features.dtype)
    held = scaler(np.asarray(task.features)[part.held])
    return TargetInput(
        _pad(scaler(features), (shape.items, shape.dim)),
        pad_rows(np.asarray(learning.labels), shape.items),
        pad_rows(known, shape.items),
        np.pad(fold, (0, shape.items - len(fold)), constant_values=-1),
        _pad(held, (shape.held, shape.dim)),
        pad_rows(np.asarray(task.labels)[part.held], shape.held),
        pad_rows(np.ones(len(held), bool), shape.held),
        log_prior,
        np.asarray(task.dim, np.int32),
    )


def target_profile(x: TargetInput) -> TargetProfile:
    """Class means, ridge predictions and the source-free probe."""
    num_classes, dtype = x.log_prior.shape[0], x.features.dtype
    judged = x.mask & (x.fold >= 0)
    path = ridge_path(
        Samples(x.features, x.labels, x.mask),
        judged,
        x.fold,
        x.dim,
        inner_folds=INNER_FOLDS,
        num_targets=num_classes,
    )

    def predict(ridge):
        by_fold = jnp.einsum("np,fpt->fnt", path.features, path.beta[:-1, ridge])
        return path.unseen(by_fold + path.intercept[:-1, ridge, None]).T  # (K, n)

    predictions = jax.lax.map(predict, jnp.arange(path.beta.shape[1]))
    held = x.held if path.basis is None else x.held @ path.basis
    weights = judged.astype(dtype)
    counts = jax.ops.segment_sum(x.mask.astype(dtype), x.labels, num_classes)
    sums = jax.ops.segment_sum(
        jnp.where(x.mask[:, None], x.features, 0.0), x.labels, num_classes
    )
    probe_loss, probe_accuracy = probe_figures(
        path, x.log_prior, x.held, x.held_labels, x.held_mask
    )
    return TargetProfile(
        means=sums / jnp.maximum(counts, 1.0)[:, None],
        log_prior=x.log_prior,
        predictions=jnp.swapaxes(predictions, 0, 1).reshape(num_classes, -1),
        labels=jnp.where(x.mask, x.labels, 0),
        weights=weights / jnp.maximum(jnp.sum(weights), 1.0),
        held=jnp.swapaxes(
            held[None] @ path.beta[-1] + path.intercept[-1][:, None], 1, 2
        ),
        held_labels=x.held_labels,
        held_mask=x.held_mask,
        probe_loss=probe_loss,
        probe_accuracy=probe_accuracy,
    )


def probe_figures(
    path: RidgePath, log_prior: Array, held: Array, labels: Array, mask: Array
) -> tuple[Array, Array]:
    """Mean loss (nats) and accuracy of the source-free ridge probe on held-out
    items.
    """
    log_p = jax.nn.log_softmax(ridge_probe(path, log_prior).logits(held))
    own = jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
    hits = jnp.argmax(log_p, axis=1).astype(labels.dtype) == labels
    number = jnp.maximum(jnp.sum(mask.astype(held.dtype)), 1.0)

    def mean(values):
        return jnp.sum(jnp.where(mask, values, 0.0)) / number

    return mean(-own), mean(hits.astype(held.dtype))
