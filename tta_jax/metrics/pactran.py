"""PACTran with a Gaussian prior: a PAC-Bayes bound of the loss after fine-tuning a
linear head (Ding et al. 2022).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tta_jax._internal.typing import Array
from tta_jax.core.heads import SoftmaxHead, empty_head
from tta_jax.fitting.logistic_regression import minimise_cross_entropy
from tta_jax.metrics._inputs import LabelledFeatures
from tta_jax.metrics._registry import metric


@metric(
    "nothing",
    cost="n d K a step",
    reference="Ding et al. 2022, arXiv 2203.05126",
    differentiable=False,
    sees_scale=True,
)
def pactran(
    target: LabelledFeatures, *, strength: float = 1.0, variance: float = 100.0
) -> Array:
    """Return `-min_W (CE(W) + ||W||^2 / (2 lambda n)) - c sigma_0^2 ln(sigma^-2)`,
    nats, with `c = d K / (2 lambda n)`.

    The minimum is over a linear head with a free bias on centred features, from zero
    and to convergence (released code starts at random and stops early).
    `sigma^-2 = lambda n / (d K) tr(H)`, H the Hessian of the losses' sum at the minimum
    plus that of the prior, as released code has it.

    Args:
      strength: lambda; the paper tries 0.1, 1 and 10.
      variance: `sigma_0^2` times d; the paper tries 10 to 1,000.
    """
    for name, value in (("strength", strength), ("variance", variance)):
        if not value > 0:
            raise ValueError(f"{name}: found {value!r}; give a positive number")
    return _pactran(target.centred(), strength, variance)


@jax.jit
def _pactran(data: LabelledFeatures, strength: float, variance: float) -> Array:
    classes, dim = data.one_hot.shape[1], data.features.shape[1]
    dtype = data.features.dtype
    decay = 1 / (strength * data.size)
    head = minimise_cross_entropy(
        empty_head(classes, dim, dtype),
        data.features,
        data.labels,
        data.weights,
        data.present,
        decay,
        steps=3000,
        tolerance=float(jnp.finfo(dtype).eps) ** 0.75,
    )
    return -_bound(head, data, decay, variance)


def _bound(
    head: SoftmaxHead, data: LabelledFeatures, decay: Array, variance: float
) -> Array:
    dim, present = data.features.shape[1], data.present
    number = dim * jnp.sum(present, dtype=decay.dtype)
    log_p = jax.nn.log_softmax(
        jnp.where(present[None], head.logits(data.features), -jnp.inf), axis=1
    )
    p = jnp.exp(log_p)
    objective = -data.own(log_p) + 0.5 * decay * jnp.sum(head.weight**2)
    bends = jnp.sum(p * (1 - p), axis=1) * data.weights
    # Weights and biases of the Hessian's diagonal; the sum over items, as released, and
    # the decay once for every weight.
    trace = (
        jnp.sum(bends * jnp.sum(data.features**2, axis=1))
        + jnp.sum(bends)
        + number * decay
    )
    precision = trace / (decay * number) + 1e-10
    return objective + 0.5 * number * decay * (variance / dim) * jnp.log(precision)
