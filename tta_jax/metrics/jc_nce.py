"""JC-NCE: OTCE with distances between classes in the cost of the coupling (Tan et al.
2021, arXiv 2106.10479).
"""

from __future__ import annotations

from functools import partial

import jax

from tta_jax._internal.typing import Array
from tta_jax.metrics._inputs import LabelledFeatures, class_capacity
from tta_jax.metrics._label_distance import check_label_distance, label_distances
from tta_jax.metrics._registry import TRANSPORT_COST, metric
from tta_jax.metrics._sinkhorn_coupling import CELLS, couple, mean_square
from tta_jax.metrics.nce import minus_conditional_entropy
from tta_jax.metrics.otce import centred_together


@metric(
    "task",
    cost=f"{TRANSPORT_COST}; the same for every pair of classes",
    reference="Tan et al. 2021, arXiv 2106.10479",
    differentiable=False,
    takes=("num_source_classes",),
)
def jc_nce(
    target: LabelledFeatures,
    source: LabelledFeatures,
    *,
    label_distance: str = "exact",
    feature_weight: float = 0.5,
    epsilon: float = 0.05,
    class_size: int | None = None,
    cells: int = CELLS,
) -> Array:
    """Return `-H(Y_T | Y_S)` under the plan for the cost
    `w ||x - y||^2 + (1 - w) W(class of x, class of y)`, nats, at most 0.

    Args:
      label_distance: "exact" or "gaussian", see `label_distance.label_distances`.
      feature_weight: w, in [0, 1].
      epsilon: regularisation relative to the mean squared distance.
      class_size: items in the largest class of either task, static; saves work under
        jit.
      cells: most costs held at once, static; memory does not grow beyond.
    """
    check_label_distance(label_distance)
    if not 0 <= feature_weight <= 1:
        raise ValueError(
            f"feature_weight: found {feature_weight!r}; give a share between 0 and 1"
        )
    return _jc_nce(
        source,
        target,
        feature_weight,
        epsilon,
        kind=label_distance,
        capacities=(
            class_capacity(source, class_size),
            class_capacity(target, class_size),
        ),
        cells=cells,
    )


@partial(jax.jit, static_argnames=("kind", "capacities", "cells"))
def _jc_nce(
    source: LabelledFeatures,
    target: LabelledFeatures,
    feature_weight: float,
    epsilon: float,
    *,
    kind: str,
    capacities: tuple[int, int],
    cells: int,
) -> Array:
    source, target = centred_together(source, target)
    unit = epsilon * mean_square(source, target)
    between = label_distances(source, target, kind, unit, capacities)
    plan = couple(
        source,
        target,
        (1 - feature_weight) * between,
        unit,
        feature_weight=feature_weight,
        cells=cells,
    )
    return minus_conditional_entropy(plan.joint)
