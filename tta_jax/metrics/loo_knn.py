"""k nearest neighbours as a metric: leave-one-out accuracy, which beats most published
scores (arXiv 2503.18528).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from tta_jax._internal.numbers import whole_number
from tta_jax._internal.typing import Array, ArrayLike
from tta_jax.metrics._inputs import LabelledFeatures
from tta_jax.metrics._registry import metric
from tta_jax.probes import DISTANCES, leave_one_out


@metric(
    "nothing",
    cost="n^2 d; memory of one tile",
    reference="leave-one-out; see arXiv 2503.18528",
    differentiable=False,
    takes=("groups",),
)
def knn(
    target: LabelledFeatures,
    *,
    groups: ArrayLike | None = None,
    k: int = 5,
    distance: str = "euclidean",
) -> Array:
    """Return the share of the items whose k nearest others, on standardised features,
    vote for their class; ties go to the larger class.

    Args:
      groups: `(n,)` whole numbers; items of one group, such as copies, do not vote on
        each other.
      k: neighbours, static; all others where there are fewer.
      distance: "euclidean" or "cosine".
    """
    if (whole_number(k) or 0) < 1:
        raise ValueError(f"k: found {k!r}; give a whole number of at least 1")
    if distance not in DISTANCES:
        raise ValueError(
            f"distance: found {distance!r}; choose one of {', '.join(DISTANCES)}"
        )
    cosine = distance == "cosine"
    return _knn(target, checked_groups(groups, target), k=k, cosine=cosine)


def checked_groups(groups: ArrayLike | None, data: LabelledFeatures) -> Array:
    """Return whole numbers `(n,)`; every item on its own when None.

    Raises:
      ValueError: names `groups`.
    """
    if groups is None:
        return jnp.arange(len(data.labels))
    found = jnp.asarray(groups)
    if found.shape != data.labels.shape or not jnp.issubdtype(found.dtype, jnp.integer):
        raise ValueError(
            f"groups: found shape {found.shape} and dtype {found.dtype}; give whole "
            f"numbers {data.labels.shape}"
        )
    return found


@partial(jax.jit, static_argnames=("k", "cosine"))
def _knn(data: LabelledFeatures, groups: Array, *, k: int, cosine: bool) -> Array:
    options, classes = jnp.asarray([k]), data.one_hot.shape[1]
    z = standardised(data)
    found = leave_one_out(
        z, data.labels, data.weights, groups, options, classes, most=k, cosine=cosine
    )
    return data.valid(found[1][0])


def standardised(data: LabelledFeatures) -> Array:
    """Return features with mean 0 and deviation 1 over the items that count; constant
    ones are zero.
    """
    z = data.centred().features
    variance = jnp.sum(z**2, axis=0) / data.size
    return z / jnp.sqrt(jnp.where(variance > 0, variance, 1.0))[None]
