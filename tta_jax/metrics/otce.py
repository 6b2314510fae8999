"""OTCE's two parts: what the coupling of source and target features says of the labels,
and what it costs (Tan et al. 2021).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax

from tta_jax._internal.typing import Array, ArrayLike
from tta_jax.metrics._inputs import LabelledFeatures, labelled_features, source_task
from tta_jax.metrics._sinkhorn_coupling import CELLS, Coupling, couple, mean_square
from tta_jax.metrics.nce import minus_conditional_entropy


def otce(
    features: ArrayLike,
    labels: ArrayLike,
    source: Any,
    *,
    mask: ArrayLike | None = None,
    num_classes: int | None = None,
    num_source_classes: int | None = None,
    epsilon: float = 0.05,
    cells: int = CELLS,
) -> Array:
    """`-H(Y_T | Y_S)` under the plan between source and target features with squared
    distances as cost, nats, at most 0.

    The plan is entropic and solved to convergence; the paper uses the exact one
    (`epsilon` towards 0). Its third part, weights
    fitted on auxiliary tasks, is left to whoever has such tasks: `otce_wasserstein` is
    the other figure that they weigh.

    Args:
      features: `(n, d)` of the target.
      labels: `(n,)` class indices of the target.
      source: the source task, a `Task` or `Samples`, in the same features.
      mask, num_classes: as in every metric.
      num_source_classes: K_S, static, for `Samples` under jit.
      epsilon: regularisation relative to the mean cost.
      cells: most costs held at once, static; memory does not grow beyond.

    Raises:
      ValueError: names the argument.
    """
    return minus_conditional_entropy(
        _plan(
            features,
            labels,
            source,
            mask,
            num_classes,
            num_source_classes,
            epsilon,
            cells,
        ).joint
    )


def otce_wasserstein(
    features: ArrayLike,
    labels: ArrayLike,
    source: Any,
    *,
    mask: ArrayLike | None = None,
    num_classes: int | None = None,
    num_source_classes: int | None = None,
    epsilon: float = 0.05,
    cells: int = CELLS,
) -> Array:
    """Minus the cost `<P, C>` of that plan, mean squared distance; at most 0. Arguments
    as in `otce`.
    """
    return -_plan(
        features, labels, source, mask, num_classes, num_source_classes, epsilon, cells
    ).cost


def _plan(
    features, labels, source, mask, num_classes, num_source_classes, epsilon, cells
) -> Coupling:
    target = labelled_features(features, labels, mask, num_classes)
    known = source_task(
        source, target.features.shape[1], num_source_classes, target.features.dtype
    )
    return _coupled(known, target, epsilon, cells=cells)


@partial(jax.jit, static_argnames=("cells",))
def _coupled(
    source: LabelledFeatures, target: LabelledFeatures, epsilon: float, *, cells: int
) -> Coupling:
    source, target = centred_together(source, target)
    return couple(
        source, target, None, epsilon * mean_square(source, target), cells=cells
    )


def centred_together(
    source: LabelledFeatures, target: LabelledFeatures
) -> tuple[LabelledFeatures, LabelledFeatures]:
    """Both tasks moved by one vector, which distances do not see and their expansion
    loses fewer digits by.
    """
    mean = jax.numpy.sum(target.features, axis=0) / target.size

    def move(task):
        return task._replace(
            features=(task.features - mean[None]) * task.weights[:, None]
        )

    return move(source), move(target)
