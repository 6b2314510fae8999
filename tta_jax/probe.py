"""Ground truth for a frozen encoder: how well a classifier fitted to the target itself does."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from tta_jax.head import choose_l2, empty_head, minimise_cross_entropy
from tta_jax.task import Standardizer, Task


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """Test figures of a probe: mean loss (nats), accuracy, and the weight decay that was chosen."""

    loss: float
    accuracy: float
    l2: float


def linear_probe(train: Task, test: Task, l2: float | None = None) -> ProbeResult:
    """Multinomial logistic regression on standardised features, weight decay by an inner hold-out unless given.

    Raises:
      ValueError: if the tasks have different classes or feature counts.
    """
    if train.class_names != test.class_names or train.dim != test.dim:
        raise ValueError(f"test: task {test.name!r} has other classes or features than {train.name!r}")
    scaler = Standardizer.fit(np.asarray(train.features), clip=5.0)
    x, y = jnp.asarray(scaler(train.features)), jnp.asarray(train.labels)
    weights = jnp.asarray(train.labelled, x.dtype)
    if l2 is None:
        l2 = choose_l2(x, y, weights, train.num_classes)
    head = minimise_cross_entropy(
        empty_head(train.num_classes, train.dim, x.dtype), x, y, weights, jnp.ones(train.num_classes, bool),
        jnp.asarray(l2, x.dtype), jnp.asarray(np.inf, x.dtype),
    )  # fmt: skip
    known = np.asarray(test.labelled)
    p = np.asarray(head.predict_proba(jnp.asarray(scaler(test.features))), np.float64)[known]
    labels = np.asarray(test.labels)[known]
    loss = -np.log(np.maximum(p[np.arange(len(labels)), labels], 1e-300)).mean()
    return ProbeResult(float(loss), float((p.argmax(1) == labels).mean()), float(l2))
