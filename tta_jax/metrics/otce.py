"""OTCE's two parts: what the coupling of source and target features says of the labels,
and what it costs (Tan et al. 2021).
"""

from __future__ import annotations

from functools import partial

import jax

from tta_jax._internal.typing import Array
from tta_jax.metrics._inputs import LabelledFeatures
from tta_jax.metrics._registry import TRANSPORT_COST, metric
from tta_jax.metrics._sinkhorn_coupling import CELLS, Coupling, couple, mean_square
from tta_jax.metrics.nce import minus_conditional_entropy


@metric(
    "task",
    cost=TRANSPORT_COST,
    reference="Tan et al. 2021, arXiv 2103.13843",
    differentiable=False,
    takes=("num_source_classes",),
)
def otce(
    target: LabelledFeatures,
    source: LabelledFeatures,
    *,
    epsilon: float = 0.05,
    cells: int = CELLS,
) -> Array:
    """Return `-H(Y_T | Y_S)` under the plan between source and target features with
    squared distances as cost, nats, at most 0.

    The plan is entropic and solved to convergence; the paper uses the exact one
    (`epsilon` towards 0). Its third part, weights fitted on auxiliary tasks, is left to
    whoever has such tasks: `otce_wasserstein` is the other figure that they weigh.

    Args:
      epsilon: regularisation relative to the mean cost.
      cells: most costs held at once, static; memory does not grow beyond.
    """
    return minus_conditional_entropy(
        _coupled(source, target, epsilon, cells=cells).joint
    )


@metric(
    "task",
    cost=TRANSPORT_COST,
    reference="Tan et al. 2021, arXiv 2103.13843",
    differentiable=False,
    sees_scale=True,
    takes=("num_source_classes",),
)
def otce_wasserstein(
    target: LabelledFeatures,
    source: LabelledFeatures,
    *,
    epsilon: float = 0.05,
    cells: int = CELLS,
) -> Array:
    """Return minus the cost `<P, C>` of the plan of `otce`, mean squared distance; at
    most 0.

    Args:
      epsilon: regularisation relative to the mean cost.
      cells: most costs held at once, static; memory does not grow beyond.
    """
    return -_coupled(source, target, epsilon, cells=cells).cost


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
    """Move both tasks by one vector, which distances do not see and their expansion
    loses fewer digits by.
    """
    mean = jax.numpy.sum(target.features, axis=0) / target.size

    def move(task):
        return task._replace(
            features=(task.features - mean[None]) * task.weights[:, None]
        )

    return move(source), move(target)
