"""Distances between the classes of a pair."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tta_jax._internal.typing import Array
from tta_jax.metrics._inputs import class_capacity, labelled_features
from tta_jax.metrics._label_distance import label_distances
from tta_jax.report.embedding import DIRECTIONS, ITEMS_PER_CLASS, project_features
from tta_jax.tasks.task import Task

if TYPE_CHECKING:
    from tta_jax.analysis.result import Analysis


class ClassDistances(NamedTuple):
    """Distances between target classes (rows) and source classes (columns),
    `(K_T, K_S)`; NaN where a class has no items.
    """

    before: np.ndarray
    after: np.ndarray


def class_distances(
    result: Analysis, source: Task, target: Task, *, space: str = "features"
) -> ClassDistances:
    """2-Wasserstein distances between classes taken as Gaussians, before and after the
    learned map, in units of `space`.

    They are computed from up to 500 items of a class (fixed seed), within the 64
    leading principal directions of source and target before and after, where
    covariances are better known; so they are at most the distances in all directions.

    Raises:
      ValueError: as `project_features`; for a target without labels.
    """
    clouds = project_features(result, source, target, ITEMS_PER_CLASS, space=space)
    if (clouds.labels < 0).all():
        raise ValueError(
            "target: it has no labels, so there are no classes to tell apart"
        )
    axes = clouds.axes(DIRECTIONS)

    def task(rows, labels, names):
        return labelled_features(
            axes(rows), np.maximum(labels, 0), labels >= 0, len(names)
        )

    found = []
    for mine, theirs in zip(clouds.source, clouds.target, strict=True):
        pair = (
            task(theirs, clouds.labels, result.target_classes),
            task(mine, clouds.classes, result.source_classes),
        )
        squared = np.array(
            _gaussian_distances(*pair, tuple(class_capacity(one, None) for one in pair))
        )
        there = np.asarray(pair[0].present)[:, None] & np.asarray(pair[1].present)[None]
        found.append(np.where(there, np.sqrt(np.maximum(squared, 0.0)), np.nan))
    return ClassDistances(*found)


@partial(jax.jit, static_argnames="capacities")
def _gaussian_distances(first: Any, second: Any, capacities: tuple[int, int]) -> Array:
    return label_distances(first, second, "gaussian", jnp.zeros(()), capacities)
