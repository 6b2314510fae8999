"""Ground truth for a frozen encoder: how well a classifier fitted to the target itself does."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from tta_jax.head import SoftmaxHead, decay_path, empty_head, minimise_cross_entropy
from tta_jax.task import Standardizer, Task, real_number


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """Test figures of a probe: mean loss (nats), accuracy, and the weight decay that was chosen."""

    loss: float
    accuracy: float
    l2: float


def linear_probe(train: Task, test: Task, l2: float | None = None) -> ProbeResult:
    """Multinomial logistic regression on standardised features, weight decay by an inner hold-out unless given.

    Raises:
      ValueError: if the tasks have different classes or feature counts or no labels, or `l2` is not positive.
    """
    for argument, task in (("train", train), ("test", test)):
        if not np.asarray(task.labelled).any():
            raise ValueError(
                f"{argument}: task {task.name!r} has no labels; a probe learns from labels and is judged on them"
            )
    if l2 is not None and not 0 < real_number(l2) < np.inf:
        raise ValueError(f"l2: found {l2!r}; give a positive number or None")
    if train.class_names != test.class_names or train.dim != test.dim:
        raise ValueError(f"test: task {test.name!r} has other classes or features than {train.name!r}")
    scaler = Standardizer.fit(np.asarray(train.features), clip=5.0)
    x, y = jnp.asarray(scaler(train.features)), jnp.asarray(train.labels)
    weights = jnp.asarray(train.labelled, x.dtype)
    if l2 is None:
        l2 = decay_path(x, y, weights, train.num_classes).l2
    head = minimise_cross_entropy(
        empty_head(train.num_classes, train.dim, x.dtype), x, y, weights, jnp.ones(train.num_classes, bool),
        jnp.asarray(l2, x.dtype),
    )  # fmt: skip
    known = np.asarray(test.labelled)
    figures = loss_and_accuracy(head, scaler(np.asarray(test.features)[known]), np.asarray(test.labels)[known])
    return ProbeResult(*figures, float(l2))


def loss_and_accuracy(head: SoftmaxHead, features: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Mean loss (nats) and accuracy of a head on `(n, d)` features in its coordinates, on the host.

    In float64 from the logits: probabilities of float32 vanish beyond 103 nats.
    """
    logits = np.asarray(features, np.float64) @ np.asarray(head.weight, np.float64).T + np.asarray(
        head.bias, np.float64
    )
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return float(-log_p[np.arange(len(labels)), labels].mean()), float((logits.argmax(1) == labels).mean())
