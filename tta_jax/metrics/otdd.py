"""OTDD: optimal transport between data sets whose labels are compared by what their
items look like (Alvarez-Melis, Fusi 2020).
"""

from __future__ import annotations

from functools import partial

import jax

from tta_jax._internal.typing import Array
from tta_jax.metrics._inputs import LabelledFeatures, class_capacity
from tta_jax.metrics._label_distance import check_label_distance, label_distances
from tta_jax.metrics._registry import TRANSPORT_COST, metric
from tta_jax.metrics._sinkhorn_coupling import CELLS, couple, couple_self, mean_square
from tta_jax.metrics.otce import centred_together


@metric(
    "task",
    cost=f"{TRANSPORT_COST}; K_S K s^2 (d + s), s the largest class",
    reference="Alvarez-Melis, Fusi 2020, arXiv 2002.02923",
    sees_scale=True,
    takes=("num_source_classes",),
)
def otdd(
    target: LabelledFeatures,
    source: LabelledFeatures,
    *,
    label_distance: str = "gaussian",
    epsilon: float = 0.05,
    class_size: int | None = None,
    cells: int = CELLS,
) -> Array:
    """Return minus the squared distance: the Sinkhorn divergence of the two tasks for
    the cost `||x - y||^2 + W(class of x, class of y)`.

    Debiased, so it is 0 between a task and itself; squared distances, so compare it
    within one encoder only.

    Args:
      label_distance: "gaussian" or "exact", see `label_distance.label_distances`.
      epsilon: regularisation relative to the mean squared distance, inner and outer.
      class_size: items in the largest class of either task, static; saves work under
        jit.
      cells: most costs held at once, static; memory does not grow beyond.
    """
    check_label_distance(label_distance)
    return _otdd(
        source,
        target,
        epsilon,
        kind=label_distance,
        capacities=(
            class_capacity(source, class_size),
            class_capacity(target, class_size),
        ),
        cells=cells,
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
