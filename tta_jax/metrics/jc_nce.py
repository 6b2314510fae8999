"""JC-NCE: OTCE with distances between classes in the cost of the coupling (Tan et al.
2021, arXiv 2106.10479).
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
from tta_jax.metrics._sinkhorn_coupling import CELLS, couple, mean_square
from tta_jax.metrics.nce import minus_conditional_entropy
from tta_jax.metrics.otce import centred_together


def jc_nce(
    features: ArrayLike,
    labels: ArrayLike,
    source: Any,
    *,
    mask: ArrayLike | None = None,
    num_classes: int | None = None,
    num_source_classes: int | None = None,
    label_distance: str = "exact",
    feature_weight: float = 0.5,
    epsilon: float = 0.05,
    class_size: int | None = None,
    cells: int = CELLS,
) -> Array:
    """`-H(Y_T | Y_S)` under the plan for the cost
    `w ||x - y||^2 + (1 - w) W(class of x, class of y)`, nats, at most 0.

    Args:
      features: `(n, d)` of the target.
      labels: `(n,)` class indices of the target.
      source: the source task, a `Task` or `Samples`, in the same features.
      mask, num_classes: as in every metric.
      num_source_classes, epsilon, cells: as in `otce`; `epsilon` is relative to the
        mean squared distance.
      label_distance: "exact" or "gaussian", see `label_distance.label_distances`.
      feature_weight: w, in [0, 1].
      class_size: items in the largest class of either task, static; saves work under
        jit.

    Raises:
      ValueError: names the argument.
    """
    check_label_distance(label_distance)
    if not 0 <= feature_weight <= 1:
        raise ValueError(
            f"feature_weight: found {feature_weight!r}; give a share between 0 and 1"
        )
    target = labelled_features(features, labels, mask, num_classes)
    known = source_task(
        source, target.features.shape[1], num_source_classes, target.features.dtype
    )
    capacities = (class_capacity(known, class_size), class_capacity(target, class_size))
    return _jc_nce(
        known,
        target,
        feature_weight,
        epsilon,
        kind=label_distance,
        capacities=capacities,
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
