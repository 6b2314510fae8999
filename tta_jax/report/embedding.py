"""Embed features and distances in the plane (PCA, SMACOF)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tta_jax._internal.typing import Array
from tta_jax.core.linalg import eigh, gram
from tta_jax.tasks.splits import subsample_per_class
from tta_jax.tasks.subdivision import subdivided
from tta_jax.tasks.task import Task

if TYPE_CHECKING:
    from tta_jax.analysis.result import Analysis
ITEMS_PER_CLASS = 500  # of which distances are computed
DIRECTIONS = 64  # in which they are


class Principal(NamedTuple):
    """Principal axes.

    Attributes:
      mean: `(d,)`.
      axes: `(p, d)` orthonormal rows, of falling variance; the largest entry of each is
        positive.
      variances: `(p,)` along them.
      total: scalar, the sum of all variances.
    """

    mean: Array
    axes: Array
    variances: Array
    total: Array

    def __call__(self, rows: Any) -> Array:
        """Coordinates `(n, p)` of `rows (n, d)`."""
        return jnp.matmul(
            jnp.asarray(rows) - self.mean[None], self.axes.T, precision="highest"
        )


def fix_signs(axes: Array) -> Array:
    """Rows with the sign that makes their largest entry positive: a spectrum leaves
    signs open.
    """
    largest = jnp.take_along_axis(
        axes, jnp.argmax(jnp.abs(axes), axis=1)[:, None], axis=1
    )
    return jnp.where(largest < 0, -axes, axes)


@partial(jax.jit, static_argnames="number")
def principal_axes(rows: Array, weights: Array, number: int = 2) -> Principal:
    """The principal axes of weighted rows, by the smaller Gram matrix.

    Args:
      rows: `(n, d)`.
      weights: `(n,)`, not negative, with a positive sum.
      number: how many axes, static; at most `min(n, d)`.
    """
    weights = weights / jnp.sum(weights)
    mean = weights @ rows
    centred = (rows - mean[None]) * jnp.sqrt(weights)[:, None]
    wide = rows.shape[0] < rows.shape[1]
    values, vectors = eigh(gram(centred.T if wide else centred))
    values, vectors = (
        jnp.maximum(values[::-1][:number], 0.0),
        vectors[:, ::-1][:, :number],
    )
    if wide:
        vectors = jnp.matmul(centred.T, vectors, precision="highest")
        length = jnp.sqrt(jnp.sum(vectors**2, axis=0))
        vectors = vectors / jnp.where(length > 0, length, 1.0)[None]
    return Principal(mean, fix_signs(vectors.T), values, jnp.sum(centred**2))


class Scaling(NamedTuple):
    """Points in a plane whose distances are near those wanted.

    Attributes:
      points: `(n, 2)`, about their mean, the direction of most spread first.
      stress: scalar, Kruskal's stress-1: the root of squared differences over squared
        distances; 0 is perfect.
    """

    points: Array
    stress: Array


_STEPS = 300


@jax.jit
def fit_mds(distances: Array) -> Scaling:
    """Metric scaling of symmetric `distances (n, n)`: exact where they are those of
    points in a plane.

    Starts from classical (Torgerson) scaling and takes 300 steps of SMACOF, each of
    which lowers the stress or keeps it.
    """
    squared = distances**2
    rows = jnp.mean(squared, axis=1)
    values, vectors = eigh(-(squared - rows[:, None] - rows[None] + jnp.mean(rows)) / 2)
    start = vectors[:, ::-1][:, :2] * jnp.sqrt(jnp.maximum(values[::-1][:2], 0.0))[None]

    def between(points: Array) -> Array:
        return jnp.sqrt(jnp.sum((points[:, None] - points[None]) ** 2, axis=-1))

    def step(_: Any, points: Array) -> Array:
        found = between(points)
        ratio = jnp.where(found > 0, distances / jnp.where(found > 0, found, 1.0), 0.0)
        pulled = jnp.sum(ratio, axis=1)[:, None] * points - jnp.matmul(
            ratio, points, precision="highest"
        )
        return pulled / len(distances)

    points = jax.lax.fori_loop(0, _STEPS, step, start)
    points = points - jnp.mean(points, axis=0)[None]
    points = jnp.matmul(points, eigh(gram(points))[1][:, ::-1], precision="highest")
    stress = jnp.sqrt(jnp.sum((between(points) - distances) ** 2) / jnp.sum(squared))
    return Scaling(fix_signs(points.T).T, stress)


SPACES = ("features", "logits")


class FeatureClouds(NamedTuple):
    """What a map brings together; class indices are those of the target.

    Attributes:
      source: before and after the map, `(n, p)` each; in "logits" the same twice.
      target: likewise, `(m, p)` each; in "features" the same twice.
      carried: `(n,)` the target class that an item's class carries most of; -1 where it
        carries none.
      labels: `(m,)`; -1 for an item without a label.
      classes: `(n,)` source classes of the items.
    """

    source: tuple[np.ndarray, np.ndarray]
    target: tuple[np.ndarray, np.ndarray]
    carried: np.ndarray
    labels: np.ndarray
    classes: np.ndarray

    def axes(self, number: int) -> Principal:
        """Principal axes of source and target, before and after together, each of the
        same weight.
        """
        parts = (*self.source, *self.target)
        rows = np.concatenate(parts)
        weights = np.concatenate(
            [np.full(len(part), 1 / len(part), rows.dtype) for part in parts]
        )
        return principal_axes(rows, weights, min(number, *rows.shape))


def project_features(
    result: Analysis,
    source: Task,
    target: Task,
    most: int | None = None,
    *,
    space: str = "features",
) -> FeatureClouds:
    """The features an analysis is about, as its map sees them; its file does not hold
    them.

    In "features" the map moves the source: `phi(z)` against the target, standardised.
    In "logits" it moves the target: logits of the source classes in use, less their
    mean, of source items by the head, and of target items by the head before and by the
    transformed classifier after. `tight` and `oscillation` see nothing but logits, and
    a logit-affine map may gather the source's features in a small place; so there the
    logits tell more.

    Args:
      source, target: the tasks that were analysed.
      most: items of a class at most, drawn with a fixed seed; all when None.
      space: "features" or "logits".

    Raises:
      ValueError: for tasks of another width or other classes, another space, or
        "features" of a map of which only the logits are
      known.
    """
    if space not in SPACES:
        raise ValueError(f"space: found {space!r}; choose one of {', '.join(SPACES)}")
    width = result.source_scaler.dim
    if np.asarray(source.labelled).any():
        source = subdivided(
            source, len(result.source_classes)
        )  # as it was for the analysis, or as it is
    for role, task, names in (
        ("source", source, result.source_classes),
        ("target", target, result.target_classes),
    ):
        if task.dim != width:
            raise ValueError(
                f"{role}: it has {task.dim} features, the analysis {width}; give the "
                "file that was analysed"
            )
        stored, given = (
            ", ".join(map(str, which)) for which in (names, task.class_names)
        )
        if np.asarray(task.labelled).any() and given != stored:
            raise ValueError(
                f"{role}: its classes ({given[:60]}) are not those of the analysis "
                f"({stored[:60]}); give the file that was analysed"
            )
    if not np.asarray(source.labelled).any():
        raise ValueError("source: it has no labels; give the file that was analysed")
    phi = result.transforms.feature_map
    if space == "features" and phi.why_not:
        raise ValueError(
            f"result: its map has no features of its own to show ({phi.why_not})"
        )
    rng = np.random.default_rng(0)
    source, target = (
        _few(task, most, len(result.target_classes), rng) for task in (source, target)
    )
    dtype = np.asarray(result.head.weight).dtype
    z = np.asarray(result.source_scaler(np.asarray(source.features)), dtype)
    u = np.asarray(result.target_scaler(np.asarray(target.features)), dtype)
    joint = np.asarray(result.transforms.coupling)
    used = joint.sum(0) > 0
    if space == "features":
        sources, targets = (z, np.asarray(phi(z), dtype)), (u, u)
    else:

        def centred(logits: Any) -> np.ndarray:
            kept = np.asarray(logits, dtype)[:, used]
            return kept - kept.mean(1, keepdims=True)

        mine = centred(result.head.logits(z))
        sources, targets = (
            (mine, mine),
            (
                centred(result.head.logits(u)),
                centred(phi.target_logits(result.head, u)),
            ),
        )
    classes = np.asarray(source.labels)
    labels = np.where(np.asarray(target.labelled), np.asarray(target.labels), -1)
    return FeatureClouds(
        sources, targets, np.where(used, joint.argmax(0), -1)[classes], labels, classes
    )


def _few(task: Task, most: int | None, classes: int, rng: np.random.Generator) -> Task:
    """At most so many items of every class, of a task without labels that many times
    the classes; all labelled ones for None.
    """
    if np.asarray(task.labelled).any():
        return task.take(
            subsample_per_class(
                task, np.arange(len(task)), len(task) if most is None else most, rng
            )
        )
    if most is None or len(task) <= most * classes:
        return task
    return task.take(np.sort(rng.choice(len(task), most * classes, replace=False)))
