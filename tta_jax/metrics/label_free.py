"""Will it transfer, when the target has no labels at all? Scores of target features and
a labelled source; larger is better.

All are pure functions of arrays, safe under `jit` and `vmap`, where padding is masked.
`structure` is ours; the others are what one would try first. None of them can know
whether the labels to come have anything to do with the features: nothing is certified.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from tta_jax._internal.numbers import whole_number
from tta_jax._internal.padding import pad_length, pad_rows
from tta_jax._internal.text import one_line
from tta_jax._internal.typing import Array
from tta_jax.core.coupling import entropy
from tta_jax.core.heads import SoftmaxHead
from tta_jax.core.linalg import eigh, gram
from tta_jax.fitting.logistic_regression import fit_head
from tta_jax.metrics._inputs import LabelledFeatures, labelled_features
from tta_jax.metrics._kmeans import best_k_means
from tta_jax.metrics._label_distance import gaussian_distance, small_root
from tta_jax.metrics._principal_axes import principal
from tta_jax.metrics.compute import Score
from tta_jax.metrics.loo_knn import standardised
from tta_jax.tasks.splits import Seed, device_key, first_duplicate_index, seed_from_key
from tta_jax.tasks.task import Task

_SHRINKAGE = (
    0.1  # of the source's within-class covariance towards a multiple of the identity
)
_AXES = 30  # principal axes among which neighbours are sought
_NEIGHBOURS = 5
_NULLS = 4  # structureless targets that the real one is compared with
_ROWS = 512  # of a matrix of distances held at once


class Unlabelled(NamedTuple):
    """What the scores look at; a pytree of arrays.

    Attributes:
      target: features `(n, d)`; labels are all 0 and mean nothing.
      source: the labelled source in the same features.
      logits: `(n, K_S)` of the source head on the target's items.
      key: decides starts and draws.
    """

    target: LabelledFeatures
    source: LabelledFeatures
    logits: Array
    key: Array


# -- structure -------------------------------------------------------------------------


class Structure(NamedTuple):
    """How clustered a target is, beyond what chance makes of its spread, over
    `1 - 1 / K`: the scale of chance-corrected accuracy.

    Attributes:
      between: excess of the share of variance between K clusters, in the first K - 1
        principal axes: K means span no more.
      neighbours: excess of the share of an item's nearest neighbours that are in its
        cluster, in the first 30.
    """

    between: Array
    neighbours: Array


def structure(given: Unlabelled, num_classes: int) -> Array:
    """Sum of the two excesses of `cluster_structure`."""
    found = cluster_structure(
        given.target.features,
        given.target.weights,
        given.source,
        given.key,
        num_classes,
    )
    return found.between + found.neighbours


@partial(jax.jit, static_argnames=("num_classes",))
def cluster_structure(
    features: Float[Array, "n d"],
    weights: Float[Array, " n"],
    source: LabelledFeatures,
    key: Array,
    num_classes: int,
) -> Structure:
    """The target is seen as the source's classes are told apart, whitened by the
    covariance within them, and clustered.

    Both figures depend on the number of items, axes and clusters alone, so each is
    compared with the mean of four structureless
    targets: Gaussian samples of the same covariance and size. What is left is 0 for a
    Gaussian cloud, whatever its shape. Two
    clusters leave less to exceed than ten, as two classes leave less to beat guessing
    by: hence the division by `1 - 1 / K`.

    Args:
      features: of the target.
      weights: 1 for items that count, 0 for padding.
      source: the labelled source.
      key: decides starts and draws.
      num_classes: K, how many classes the target has.
    """
    size = jnp.sum(weights)

    def centred(rows):
        counted = rows * weights[:, None]
        return (counted - (jnp.sum(counted, axis=0) / size)[None]) * weights[:, None]

    axes, squares = principal(centred(features @ _whitener(source)))
    axes, squares = axes[:, :_AXES], squares[:_AXES]
    start, draw = jax.random.split(key)
    real = _clustering(axes, weights, start, num_classes)

    def null(key):
        draw, start = jax.random.split(key)
        # The same covariance to the last digit: one that is only expected to be the
        # same has more structure by chance.
        noise, found = principal(
            centred(jax.random.normal(draw, axes.shape, axes.dtype))
        )
        unit = jnp.where(
            found > 0, jnp.sqrt(squares / jnp.where(found > 0, found, 1.0)), 0.0
        )
        return _clustering(noise * unit[None], weights, start, num_classes)

    chance = jax.lax.map(null, jax.random.split(draw, _NULLS))
    return jax.tree.map(
        lambda a, b: (a - jnp.mean(b)) / (1 - 1 / num_classes), real, chance
    )


def _whitener(source: LabelledFeatures) -> Array:
    """`(d, d)`: maps features so that the source's covariance within classes, shrunk,
    becomes the identity.
    """
    covariance = gram(source.residuals()) / source.size
    values, vectors = eigh(covariance)
    values = jnp.maximum(values, 0.0)
    floor = _SHRINKAGE * jnp.mean(values)
    return vectors / jnp.sqrt(jnp.where(floor > 0, values + floor, 1.0))[None]


def _clustering(axes: Array, weights: Array, key: Array, clusters: int) -> Structure:
    narrow_key, wide_key = jax.random.split(key)
    _, between = best_k_means(
        axes[:, : max(2, clusters - 1)], weights, narrow_key, clusters
    )
    mine, _ = best_k_means(axes, weights, wide_key, clusters)
    return Structure(between, _agreement(axes, weights, mine))


def _agreement(x: Array, weights: Array, mine: Array) -> Array:
    """Share of the nearest other items of an item that are in its cluster; mean over
    the items that count.
    """
    squares = jnp.where(weights > 0, jnp.sum(x**2, axis=1), jnp.inf)

    def votes(block):
        rows, of, places = block
        # An item's own square is the same for all.
        near = squares[None] - 2 * jnp.matmul(rows, x.T, precision="highest")
        near = near.at[jnp.arange(len(rows)), places].set(jnp.inf)

        # Five passes are ten times quicker than a sort.
        def nearest(near, _):
            place = jnp.argmin(near, axis=1)
            return near.at[jnp.arange(len(rows)), place].set(jnp.inf), jnp.sum(
                mine[place] * of, axis=1
            )

        return jnp.sum(jax.lax.scan(nearest, near, length=_NEIGHBOURS)[1], axis=0)

    found = _by_tiles(votes, (x, mine, jnp.arange(len(weights))))
    return jnp.sum(found * weights) / (jnp.sum(weights) * _NEIGHBOURS)


def _by_tiles(function: Callable, rows: Any) -> Array:
    """`function` of blocks of rows, one value for each row; the last block is
    padded.
    """
    number = len(jax.tree.leaves(rows)[0])
    tile = min(_ROWS, number)

    def pad(v):
        return jnp.pad(v, ((0, -number % tile),) + ((0, 0),) * (v.ndim - 1))

    blocks = jax.tree.map(lambda v: pad(v).reshape(-1, tile, *v.shape[1:]), rows)
    return jax.lax.map(function, blocks).reshape(-1)[:number]


# -- what one would try first ----------------------------------------------------------


def _mean(values: Array, given: Unlabelled) -> Array:
    return jnp.sum(jnp.where(given.target.weights > 0, values, 0.0)) / given.target.size


def confidence(given: Unlabelled, num_classes: int) -> Array:
    """Mean largest probability of the source head, in [0, 1] (Hendrycks, Gimpel
    2017).
    """
    return _mean(jnp.max(jax.nn.softmax(given.logits), axis=1), given)


def _entropies(given: Unlabelled) -> tuple[Array, Array]:
    """Entropy of the mean prediction of the source head, and mean entropy of its
    predictions, nats.
    """
    log_p = jax.nn.log_softmax(given.logits)
    own = -_mean(jnp.sum(jnp.exp(log_p) * log_p, axis=1), given)
    counted = jnp.where(given.target.weights[:, None] > 0, log_p, -jnp.inf)
    return entropy(jax.nn.logsumexp(counted, axis=0) - jnp.log(given.target.size)), own


def negative_entropy(given: Unlabelled, num_classes: int) -> Array:
    """Minus the mean entropy of the source head's predictions, nats."""
    return -_entropies(given)[1]


def mutual_information(given: Unlabelled, num_classes: int) -> Array:
    """Entropy of the mean prediction less the mean entropy, nats: what the source
    head's prediction says of the item.
    """
    mixed, own = _entropies(given)
    return mixed - own


def energy(given: Unlabelled, num_classes: int) -> Array:
    """Mean `ln sum exp` of the source head's logits (Liu et al. 2020)."""
    return _mean(jax.nn.logsumexp(given.logits, axis=1), given)


def silhouette(given: Unlabelled, num_classes: int) -> Array:
    """Mean silhouette of K clusters of the standardised features, in [-1, 1] (Rousseeuw
    1987).
    """
    x, weights = standardised(given.target), given.target.weights
    mine, _ = best_k_means(x, weights, given.key, num_classes)
    sizes = jnp.sum(mine, axis=0)
    squares = jnp.sum(x**2, axis=1)

    def widths(block):
        rows, square, of = block
        near = (
            square[:, None]
            + squares[None]
            - 2 * jnp.matmul(rows, x.T, precision="highest")
        )
        near = jnp.sqrt(jnp.maximum(near, 0.0))
        total = near @ mine  # (tile, K)
        others = jnp.sum(of * sizes[None], axis=1) - 1
        inside = jnp.sum(of * total, axis=1) / jnp.maximum(others, 1.0)
        outside = jnp.where(
            (of > 0) | (sizes[None] == 0),
            jnp.inf,
            total / jnp.maximum(sizes, 1.0)[None],
        )
        nearest = jnp.min(outside, axis=1)
        scale = jnp.maximum(inside, nearest)
        return jnp.where(
            (others > 0) & jnp.isfinite(nearest) & (scale > 0),
            (nearest - inside) / scale,
            0.0,
        )

    return _mean(_by_tiles(widths, (x, squares, mine)), given)


def frechet(given: Unlabelled, num_classes: int) -> Array:
    """Minus the 2-Wasserstein distance of Gaussians fitted to source and target, in the
    source's standard deviations.
    """

    def describe(task):
        return (
            jnp.sum(task.features, axis=0) / task.size,
            small_root(task.centred().features / jnp.sqrt(task.size)),
        )

    source = describe(given.source)
    unit = jnp.sum(source[1] ** 2)
    return -jnp.sqrt(
        gaussian_distance(*source, *describe(given.target))
        / jnp.where(unit > 0, unit, 1.0)
    )


LabelFree = Callable[[Unlabelled, int], Array]
LABEL_FREE: dict[str, LabelFree] = {
    function.__name__: function
    for function in (
        structure,
        confidence,
        negative_entropy,
        mutual_information,
        energy,
        silhouette,
        frechet,
    )
}
_RUN = {
    name: jax.jit(function, static_argnums=1) for name, function in LABEL_FREE.items()
}


# -- the host's side -------------------------------------------------------------------


def label_free(
    target: Task,
    source: Task,
    *,
    head: SoftmaxHead | None = None,
    num_classes: int | None = None,
    names: Sequence[str] | None = None,
    key: Array | Seed | None = None,
    float64: bool | None = None,
) -> list[Score]:
    """Scores of a target without looking at its labels, one `Score` each, in nats or
    without unit; larger means better transfer.

    Args:
      target: features by the source's encoder; labels, if there are any, are not looked
        at, exact copies count once.
      source: the labelled source task.
      head: its classifier on these features; `fit_head` gives one when None.
      num_classes: how many classes the target has; as many as its `class_names`, or the
        source's classes without any.
      names: of `LABEL_FREE`; all when None.
      key: decides starts and draws; `jax.random.key(0)` when None.
      float64: the precision; True when None, except on TPUs.

    Raises:
      ValueError: names the argument, what was found and what to do.
    """
    for argument, task in (("target", target), ("source", source)):
        if not isinstance(task, Task):
            raise ValueError(f"{argument}: found {type(task).__name__}; give a Task")
    if source.dim != target.dim:
        raise ValueError(
            f"source: it has {source.dim} features, the target {target.dim}; use one "
            "encoder"
        )
    if int((source.counts > 0).sum()) < 2:
        raise ValueError(
            f"source: task {source.name!r} has fewer than 2 classes with labels; a "
            "source tells classes apart"
        )
    wanted = list(LABEL_FREE if names is None else names)
    if unknown := [name for name in wanted if name not in LABEL_FREE]:
        raise ValueError(
            f"names: {unknown[0]!r} is unknown; known are {', '.join(LABEL_FREE)}"
        )
    known = len(target.class_names) or source.num_classes
    classes = whole_number(known if num_classes is None else num_classes)
    if classes is None or classes < 2:
        raise ValueError(
            f"num_classes: found {known if num_classes is None else num_classes!r}; "
            "give a whole number of at least 2"
        )
    if head is not None and np.shape(head.weight)[1:] != (source.dim,):
        raise ValueError(
            f"head: its weight has shape {np.shape(head.weight)}; the tasks have "
            f"{source.dim} features"
        )
    rows = np.unique(first_duplicate_index(target.features))
    if len(rows) <= max(classes, _NEIGHBOURS):
        raise ValueError(
            f"target: task {target.name!r} has {len(rows)} distinct items for "
            f"{classes} clusters; give more items"
        )
    head = fit_head(source) if head is None else head
    wide = jax.default_backend() != "tpu" if float64 is None else float64
    dtype = np.float64 if wide else np.float32
    device = device_key(seed_from_key(jax.random.key(0) if key is None else key))
    scores = []
    with jax.enable_x64(True) if wide else contextlib.nullcontext():
        given = _given(target, rows, source, head, device, dtype)
        for name in wanted:
            begin = time.perf_counter()
            try:
                value, reason = float(_RUN[name](given, classes)), ""
            except (MemoryError, jax.errors.JaxRuntimeError) as error:
                value, reason = float("nan"), one_line(error)
            if not np.isfinite(value):
                value, reason = (
                    None,
                    reason or "it is not a number; the features may be constant",
                )
            scores.append(Score(name, value, reason, time.perf_counter() - begin))
    return scores


def _given(
    target: Task,
    rows: np.ndarray,
    source: Task,
    head: SoftmaxHead,
    key: Array,
    dtype: Any,
) -> Unlabelled:
    def padded(
        features: np.ndarray, labels: np.ndarray, classes: int
    ) -> LabelledFeatures:
        size = pad_length(len(features))
        mask = np.arange(size) < len(features)
        return labelled_features(
            pad_rows(features.astype(dtype), size),
            pad_rows(labels, size),
            mask,
            classes,
        )

    features = np.asarray(target.features)[rows]
    there = np.flatnonzero(np.asarray(source.labelled))
    known = padded(
        np.asarray(source.features)[there],
        np.asarray(source.labels)[there],
        source.num_classes,
    )
    head = jax.tree.map(lambda v: np.asarray(v, dtype), head)
    seen = padded(features, np.zeros(len(features), np.int32), 1)
    return Unlabelled(seen, known, head.logits(seen.features), key)
