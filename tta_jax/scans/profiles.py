"""What screening needs of one task alone, computed once and shared by all its pairs."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tta_jax._internal.typing import Array
from tta_jax.config import Config
from tta_jax.core.heads import SoftmaxHead
from tta_jax.core.linalg import matmul
from tta_jax.fitting.assignment import SourceFit
from tta_jax.fitting.closed_form import class_mean_logits, ridge_probe
from tta_jax.fitting.fit_pair import class_means, fit_source, target_path
from tta_jax.fitting.prepare import (
    HeldSource,
    HeldTarget,
    SourceArrays,
    TargetArrays,
    TaskShape,
    TaskSplit,
    prepare_held_source,
    prepare_held_target,
    prepare_source,
    prepare_target,
    source_scaler,
    source_struct,
    target_scaler,
    target_struct,
)
from tta_jax.fitting.relatedness import Branches, LabelledLogits, branches
from tta_jax.tasks.splits import Seed
from tta_jax.tasks.task import Samples, Task


class SourceProfile(NamedTuple):
    """What screening needs of a source, for one split. K classes, c held-out items a
    class at most.

    Attributes:
      fit: of `fit_source`.
      mean_logits: `(K, K)`, mean logits of each class (rows) on the learning part.
      held_logits: `(K, c, K)`, logits of the held-out items, by class.
      held_counts: `(K,)` int32.
      labels: `(n,)`, of the items that learn.
    """

    fit: SourceFit
    mean_logits: Array
    held_logits: Array
    held_counts: Array
    labels: Array


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
      floor: the floor wanted; NaN to choose it.
      branches, held_branches: items that learn, by the inner fold that left them out,
        and held-out items in the star.
    """

    means: Array
    log_prior: Array
    predictions: Array
    labels: Array
    weights: Array
    held: Array
    held_labels: Array
    held_mask: Array
    probe_loss: Array
    probe_accuracy: Array
    floor: Array
    branches: Branches
    held_branches: Branches


class SourceInput(NamedTuple):
    """One split of a source, prepared."""

    arrays: SourceArrays
    held: HeldSource


class TargetInput(NamedTuple):
    """One split of a target, prepared."""

    arrays: TargetArrays
    held: HeldTarget


def source_input(
    task: Task,
    split: TaskSplit,
    shape: TaskShape,
    config: Config,
    head: SoftmaxHead | None,
    seed: Seed,
) -> SourceInput:
    """Prepare one split of a source; arguments as for `prepare_source`."""
    scaler = source_scaler(task, split, config, head)
    arrays = prepare_source(task, split, scaler, config, head, seed, shape)
    return SourceInput(arrays, prepare_held_source(task, split, scaler, shape))


def target_input(
    task: Task, split: TaskSplit, shape: TaskShape, config: Config, seed: Seed
) -> TargetInput:
    """Prepare one split of a target; arguments as for `prepare_target`."""
    scaler = target_scaler(task, split, config, None)
    arrays, _ = prepare_target(task, split, scaler, config, seed, shape)
    return TargetInput(arrays, prepare_held_target(task, split, scaler, shape))


def source_struct_of(shape: TaskShape, dtype: np.dtype) -> SourceInput:
    """Shapes and types of a `SourceInput`, for compiling."""
    of = jax.ShapeDtypeStruct
    held = HeldSource(
        of((shape.classes, shape.held, shape.dim), dtype),
        of((shape.classes,), np.int32),
        of((shape.classes, shape.held), np.int32),
    )
    return SourceInput(source_struct(shape, dtype), held)


def target_struct_of(shape: TaskShape, dtype: np.dtype) -> TargetInput:
    """Shapes and types of a `TargetInput`, for compiling."""
    of, m = jax.ShapeDtypeStruct, shape.held
    held = HeldTarget(
        of((m, shape.dim), dtype),
        of((m,), np.int32),
        of((m,), np.bool_),
        of((m,), np.int32),
    )
    return TargetInput(target_struct(shape, dtype), held)


def source_profile(x: SourceInput) -> SourceProfile:
    """Fit the head and compute the logits that screening reads."""
    fit = fit_source(x.arrays)
    num_classes = x.held.counts.shape[0]
    head = SoftmaxHead(fit.weight, fit.bias)
    usable = x.arrays.mask & x.arrays.usable[x.arrays.labels]
    samples = Samples(x.arrays.features, x.arrays.labels, usable)
    everyone = jnp.ones(num_classes, bool)
    return SourceProfile(
        fit=fit,
        mean_logits=class_mean_logits(head, samples, everyone, num_classes=num_classes),
        held_logits=head.logits(x.held.features),
        held_counts=x.held.counts,
        labels=x.arrays.labels,
    )


def target_profile(x: TargetInput) -> TargetProfile:
    """Compute class means, ridge predictions and figures of the source-free probe."""
    arrays, num_classes = x.arrays, x.arrays.log_prior.shape[0]
    path = target_path(arrays)

    def predict(ridge):
        by_fold = matmul(path.features[None], path.beta[:-1, ridge])
        return path.out_of_fold(by_fold + path.intercept[:-1, ridge, None]).T  # (K, n)

    predictions = jax.lax.map(predict, jnp.arange(path.beta.shape[1]))
    held = (
        x.held.features if path.basis is None else matmul(x.held.features, path.basis)
    )
    held = matmul(held[None], path.beta[-1]) + path.intercept[-1][:, None]
    weights = arrays.judged.astype(arrays.features.dtype)
    probe = ridge_probe(path, arrays.log_prior)
    probe_loss, probe_accuracy = probe_figures(probe.head, x.held)
    there = arrays.log_prior > -jnp.inf
    logits = (probe.logits, probe.head.logits(x.held.features))
    learn = LabelledLogits(logits[0], arrays.labels, arrays.judged)
    held_out = LabelledLogits(logits[1], x.held.labels, x.held.mask)
    return TargetProfile(
        means=class_means(arrays),
        log_prior=arrays.log_prior,
        predictions=jnp.swapaxes(predictions, 0, 1).reshape(num_classes, -1),
        labels=jnp.where(arrays.mask, arrays.labels, 0),
        weights=weights / jnp.maximum(jnp.sum(weights), 1.0),
        held=jnp.swapaxes(held, 1, 2),
        held_labels=x.held.labels,
        held_mask=x.held.mask,
        probe_loss=probe_loss,
        probe_accuracy=probe_accuracy,
        floor=arrays.floor,
        branches=branches(learn, there),
        held_branches=branches(held_out, there),
    )


def probe_figures(probe: SoftmaxHead, held: HeldTarget) -> tuple[Array, Array]:
    """Mean loss (nats) and accuracy of a probe on held-out items."""
    log_p = jax.nn.log_softmax(probe.logits(held.features))
    own = jnp.take_along_axis(log_p, held.labels[:, None], axis=1)[:, 0]
    hits = jnp.argmax(log_p, axis=1).astype(held.labels.dtype) == held.labels
    number = jnp.maximum(jnp.sum(held.mask.astype(log_p.dtype)), 1.0)

    def mean(values):
        return jnp.sum(jnp.where(held.mask, values, 0.0)) / number

    return mean(-own), mean(hits.astype(log_p.dtype))
