"""OTDD: optimal transport between data sets whose labels are compared by what their
items look like (Alvarez-Melis, Fusi 2020).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax

from tta_jax._internal.typing import Array, ArrayLike
from tta_jax.metrics._inputs import (
    LabelledFeatures,
    class_capacity,
    labelled_features,
    source_task,
)
from tta_jax.metrics._label_distance import check_label_distance, label_distances
from tta_jax.metrics._sinkhorn_coupling import CELLS, couple, couple_self, mean_square
from tta_jax.metrics.otce import centred_together


def otdd(
    features: ArrayLike,
    labels: ArrayLike,
    source: Any,
    *,
    mask: ArrayLike | None = None,
    num_classes: int | None = None,
    num_source_classes: int | None = None,
    label_distance: str = "gaussian",
    epsilon: float = 0.05,
    class_size: int | None = None,
    cells: int = CELLS,
) -> Array:
    """Minus the squared distance: the Sinkhorn divergence of the two tasks for the cost
    `||x - y||^2 + W(class of x, class of y)`.

    Debiased, so it is 0 between a task and itself; squared distances, so compare it
    within one encoder only.

    Args:
      features: `(n, d)` of the target.
      labels: `(n,)` class indices of the target.
      source: the source task, a `Task` or `Samples`, in the same features.
      mask, num_classes: as in every metric.
      num_source_classes, cells: as in `otce`.
      label_distance: "gaussian" or "exact", see `label_distance.label_distances`.
      epsilon: regularisation relative to the mean squared distance, inner and outer.
      class_size: items in the largest class of either task, static; saves work under
        jit.

    Raises:
      ValueError: names the argument.
    """
    check_label_distance(label_distance)
    target = labelled_features(features, labels, mask, num_classes)
    known = source_task(
        source, target.features.shape[1], num_source_classes, target.features.dtype
    )
    capacities = (class_capacity(known, class_size), class_capacity(target, class_size))
    return _otdd(
        known, target, epsilon, kind=label_distance, capacities=capacities, cells=cells
    )


@partial(jax.jit, static_argnames=("kind", "capacities", "cells"))
def _otdd(
    source: LabelledFeatures,
    target: LabelledFeatures,
    epsilon: float,
    *,
    kind: str,
    capacities: tuple[int, int],
    cells: int,
) -> Array:
    source, target = centred_together(source, target)
    # One epsilon for all three problems, or their biases would not cancel.
    unit = epsilon * mean_square(source, target)

    def label_cost(x, y, sizes):
        return label_distances(x, y, kind, unit, sizes)

    inside = [
        couple_self(task, label_cost(task, task, (size, size)), unit, cells=cells)
        for task, size in zip((source, target), capacities, strict=True)
    ]
    # The target's own potential is nearly right where the tasks are alike, and exactly
    # so where they are the same.
    across = couple(
        source,
        target,
        label_cost(source, target, capacities),
        unit,
        start=inside[1].potential,
        cells=cells,
    )
    return (inside[0].value + inside[1].value) / 2 - across.value
