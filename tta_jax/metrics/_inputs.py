"""What every metric looks at: features and labels of a target, padding told apart,
classes as one-hot rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from tta_jax._internal.numbers import whole_number
from tta_jax._internal.padding import geometric_bucket
from tta_jax._internal.typing import Array, ArrayLike
from tta_jax.tasks.task import Samples, Task


class LabelledFeatures(NamedTuple):
    """A checked target; a pytree of arrays.

    Attributes:
      features: `(n, d)`, zeros where an item is masked; d = 0 where none were given.
      labels: `(n,)` int32; 0 where an item is masked.
      one_hot: `(n, K)`, zero rows where an item is masked.
      weights: `(n,)`, 1 for items that count, 0 for padding.
      size: scalar, how many items count; NaN if one of them has a label that is no
        class.
      counts: `(K,)` items of each class.
    """

    features: Array
    labels: Array
    one_hot: Array
    weights: Array
    size: Array
    counts: Array

    @property
    def present(self) -> Array:
        """`(K,)` bool, classes that have items; the others take no part in means over
        classes.
        """
        return self.counts > 0

    @property
    def shares(self) -> Array:
        """`(K,)` share of each class."""
        return self.counts / self.size

    @property
    def class_means(self) -> Array:
        """`(K, d)`; zeros for a class without items."""
        return (
            self.one_hot.T
            @ self.features
            / jnp.where(self.present, self.counts, 1.0)[:, None]
        )

    def centred(self) -> LabelledFeatures:
        """The mean of the items taken away; padding stays zero."""
        mean = jnp.sum(self.features, axis=0) / self.size
        return self._replace(
            features=(self.features - mean[None]) * self.weights[:, None]
        )

    def residuals(self) -> Array:
        """`(n, d)` features without the mean of their class; zeros for padding."""
        return (self.features - self.one_hot @ self.class_means) * self.weights[:, None]

    def mean_over_classes(self, values: Array) -> Array:
        """Mean of `(K,)` values over the classes that have items."""
        return jnp.sum(jnp.where(self.present, values, 0.0)) / jnp.sum(
            self.present, dtype=values.dtype
        )

    def valid(self, value: Array) -> Array:
        """A scalar; NaN if an item has a label that is no class."""
        return jnp.where(jnp.isnan(self.size), jnp.nan, value)

    def own(self, values: Array) -> Array:
        """Mean over the items of `values (n, K)` at their own class."""
        taken = jnp.take_along_axis(values, self.labels[:, None], axis=1)[:, 0]
        return jnp.sum(jnp.where(self.weights > 0, taken, 0.0)) / self.size


def labelled_features(
    features: ArrayLike | None,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    num_classes: int | None = None,
    dtype: Any = None,
) -> LabelledFeatures:
    """Check a target and mask its padding.

    Args:
      features: `(n, d)` float, or None for metrics that look at source predictions
        alone.
      labels: `(n,)` whole numbers in `0..K-1`; any value where `mask` is False.
      mask: `(n,)` bool, False for padding; None where all items count.
      num_classes: K, static; one more than the largest label when None, which needs
        concrete labels.
      dtype: of figures without features.

    Raises:
      ValueError: names the argument, what was found and what to do.
    """
    labels = _array(labels, "labels")
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels: found shape {labels.shape} and dtype {labels.dtype}; give class "
            "indices (n,)"
        )
    n = labels.shape[0]
    if features is None:
        features = np.zeros((n, 0), dtype)
    features = floats(features, "features", n)
    mask = jnp.ones(n, bool) if mask is None else _array(mask, "mask")
    if mask.shape != (n,) or mask.dtype != bool:
        raise ValueError(
            f"mask: found shape {mask.shape} and dtype {mask.dtype}; give booleans "
            f"({n},)"
        )
    classes = _classes(labels, mask, num_classes)
    fits = (labels >= 0) & (labels < classes)
    if concrete(fits, mask) and not bool(jnp.all(fits | ~mask)):
        wrong = np.asarray(labels)[np.asarray(mask & ~fits)][0]
        raise ValueError(
            f"labels: found {wrong}; give indices 0..{classes - 1}, or a larger "
            "num_classes"
        )
    dtype = features.dtype
    weights = mask.astype(dtype)
    labels = jnp.where(mask & fits, labels, 0).astype(jnp.int32)
    one_hot = jax.nn.one_hot(labels, classes, dtype=dtype) * weights[:, None]
    # Under jit nothing can be refused: a label that is no class makes every figure NaN.
    size = jnp.where(jnp.all(fits | ~mask), jnp.sum(weights), jnp.nan)
    features = jnp.where(mask[:, None], features, 0.0)
    if concrete(features) and not bool(jnp.all(jnp.isfinite(features))):
        row = int(np.flatnonzero(~np.isfinite(np.asarray(features)).all(1))[0])
        raise ValueError(
            f"features: NaN or infinite in row {row}; remove or repair such rows, or "
            "mask them"
        )
    return LabelledFeatures(
        features=features,
        labels=labels,
        one_hot=one_hot,
        weights=weights,
        size=size,
        counts=jnp.sum(one_hot, axis=0),
    )


def prepare_target(
    features: ArrayLike,
    labels: ArrayLike,
    source: None = None,
    *,
    mask: ArrayLike | None = None,
    num_classes: int | None = None,
) -> tuple[LabelledFeatures]:
    """Check the inputs of a metric that needs nothing of a source.

    Args:
      features: `(n, d)` float.
      labels: `(n,)` class indices in `0..K-1`.
      source: not used.
      mask: `(n,)` bool, False for padding; None where all items count.
      num_classes: K, static; one more than the largest label when None, which needs
        concrete labels.

    Raises:
      ValueError: names the argument, what was found and what to do.
    """
    return (labelled_features(features, labels, mask, num_classes),)


def prepare_predictions(
    features: ArrayLike | None,
    labels: ArrayLike,
    source: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    num_classes: int | None = None,
) -> tuple[LabelledFeatures, Array]:
    """Check the inputs of a metric that needs the source head's probabilities: a target
    without features, and `(n, K_S)` with zero rows for padding.

    Args:
      features: not used; None is accepted.
      labels: `(n,)` class indices in `0..K-1`.
      source: `(n, K_S)` probabilities theta of the source head for the target's items.
      mask: `(n,)` bool, False for padding; None where all items count.
      num_classes: K, static; one more than the largest label when None, which needs
        concrete labels.

    Raises:
      ValueError: names the argument, what was found and what to do.
    """
    if source is None or isinstance(source, (Task, Samples)):
        raise ValueError(
            "source: this metric needs the source head's probabilities for the "
            "target's items, (n, K_S)"
        )
    found = floats(source, "source", np.shape(labels)[0])
    data = labelled_features(None, labels, mask, num_classes, found.dtype)
    found = jnp.where(data.weights[:, None] > 0, found, 0.0)
    if concrete(found, data.weights):
        values = np.asarray(found)[np.asarray(data.weights) > 0]
        if (
            not np.isfinite(values).all()
            or (values < 0).any()
            or np.abs(values.sum(1) - 1).max() > 1e-3
        ):
            raise ValueError(
                "source: rows are no probabilities; give softmax outputs, which are >= "
                "0 and sum to 1"
            )
    return data, found


def prepare_tasks(
    features: ArrayLike,
    labels: ArrayLike,
    source: Any,
    *,
    mask: ArrayLike | None = None,
    num_classes: int | None = None,
    num_source_classes: int | None = None,
) -> tuple[LabelledFeatures, LabelledFeatures]:
    """Check the inputs of a metric that needs the source task: target and source.

    Args:
      features: `(n, d)` float, of the target.
      labels: `(n,)` class indices in `0..K-1`, of the target.
      source: the source task, a `Task` or `Samples`, in the same features.
      mask: `(n,)` bool, False for padding; None where all items count.
      num_classes: K, static; one more than the largest label when None, which needs
        concrete labels.
      num_source_classes: K_S, static; that of a `Task`, and for `Samples` as
        `num_classes`, when None.

    Raises:
      ValueError: names the argument, what was found and what to do.
    """
    target = labelled_features(features, labels, mask, num_classes)
    dim, dtype = target.features.shape[1], target.features.dtype
    if isinstance(source, Task):
        num_source_classes, source = source.num_classes, source.samples
    if not isinstance(source, Samples):
        raise ValueError(
            f"source: found {type(source).__name__}; this metric needs the source "
            "task, a Task or Samples"
        )
    try:
        found = labelled_features(
            jnp.asarray(source.features).astype(dtype),
            source.labels,
            source.mask,
            num_source_classes,
        )
    except ValueError as error:
        raise ValueError(
            f"source: {str(error).replace('num_classes', 'num_source_classes')}"
        ) from None
    if found.features.shape[1] != dim:
        raise ValueError(
            f"source: it has {found.features.shape[1]} features, the target {dim}; use "
            "one encoder"
        )
    return target, found


def floats(values: ArrayLike, argument: str, size: int) -> Array:
    """`(size, width)` real numbers as floats.

    Raises:
      ValueError: names the argument.
    """
    found = _array(values, argument)
    if found.ndim != 2 or found.shape[0] != size:
        raise ValueError(
            f"{argument}: found shape {found.shape}; give ({size}, ...), one row for "
            "each label"
        )
    if not (
        jnp.issubdtype(found.dtype, jnp.floating)
        or jnp.issubdtype(found.dtype, jnp.integer)
    ):
        raise ValueError(f"{argument}: found dtype {found.dtype}; give real numbers")
    if found.dtype.itemsize < 4 or not jnp.issubdtype(found.dtype, jnp.floating):
        found = found.astype(jnp.float32)
    return found


def class_capacity(data: LabelledFeatures, class_size: int | None) -> int:
    """How many items of a class are held: the largest class, rounded up to few shapes;
    all n where counts are traced.
    """
    if class_size is not None:
        size = whole_number(class_size)
        if size is None or size < 1:
            raise ValueError(
                f"class_size: found {class_size!r}; give the number of items in the "
                "largest class"
            )
        return min(size, len(data.labels))
    if not concrete(data.counts):
        return len(data.labels)
    return min(
        geometric_bucket(max(int(np.asarray(data.counts).max(initial=1)), 1), 4),
        len(data.labels),
    )


def class_rows(data: LabelledFeatures, values: Array, capacity: int) -> Array:
    """`(K, capacity, ...)` rows of `values (n, ...)` class by class; zeros behind the
    last item of a class.

    A class with more items than `capacity` becomes NaN: what it holds would not be the
    class.
    """
    classes = data.counts.shape[0]
    order = jnp.argsort(jnp.where(data.weights > 0, data.labels, classes), stable=True)
    counts = data.counts.astype(jnp.int32)
    place = (
        jnp.cumsum(counts)[:, None]
        - counts[:, None]
        + jnp.arange(capacity, dtype=jnp.int32)[None]
    )
    inside = jnp.arange(capacity, dtype=jnp.int32)[None] < counts[:, None]
    rows = values[order[jnp.clip(place, 0, len(order) - 1)]]
    wide = (classes, capacity) + (1,) * (values.ndim - 1)
    fits = (counts <= capacity).reshape((classes,) + (1,) * values.ndim)
    return jnp.where(fits, jnp.where(inside.reshape(wide), rows, 0.0), jnp.nan)


def concrete(*arrays: Any) -> bool:
    """Whether values can be looked at: nothing is traced."""
    return not any(isinstance(v, Tracer) for v in arrays)


def _array(values: ArrayLike, argument: str) -> Array:
    try:
        return jnp.asarray(values)
    except (TypeError, ValueError):
        raise ValueError(
            f"{argument}: found {type(values).__name__}; give an array of numbers"
        ) from None


def _classes(labels: Array, mask: Array, num_classes: int | None) -> int:
    if num_classes is None:
        if not concrete(labels, mask):
            raise ValueError(
                "num_classes: give the number of classes; under jit and vmap labels "
                "cannot be counted"
            )
        known = np.asarray(labels)[np.asarray(mask)]
        if not known.size:
            raise ValueError("mask: no item counts; a metric needs labelled items")
        return int(known.max()) + 1
    found = whole_number(num_classes)
    if found is None or found < 1:
        raise ValueError(
            f"num_classes: found {num_classes!r}; give a whole number of at least 1"
        )
    return found
