"""Softmax heads and their certified Lipschitz constant (docs/theory.md, section
3.3).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from tta_jax._internal.typing import Array, ArrayLike, DTypeLike
from tta_jax.core.linalg import matmul


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SoftmaxHead:
    """A linear softmax classifier.

    Attributes:
      weight: `(K, d)`.
      bias: `(K,)`.
    """

    weight: ArrayLike
    bias: ArrayLike

    def logits(self, features: ArrayLike) -> Array:
        """`W z + c`, `(n, K)`."""
        out = matmul(jnp.asarray(features), jnp.asarray(self.weight).T)
        return out + jnp.reshape(self.bias, (1,) * (out.ndim - 1) + (-1,))

    def predict_proba(self, features: ArrayLike) -> Array:
        """`softmax(W z + c)`, `(n, K)`."""
        return jax.nn.softmax(self.logits(features))

    @property
    def num_classes(self) -> int:
        return self.weight.shape[0]

    @classmethod
    def from_linear(cls, layer: Any) -> SoftmaxHead:
        """The head in a Flax layer with `kernel (d, K)` and perhaps `bias (K,)`, such
        as `nnx.Linear`.

        Raises:
          ValueError: for another layer.
        """
        kernel, bias = (getattr(layer, name, None) for name in ("kernel", "bias"))
        if kernel is None or kernel.ndim != 2:
            raise ValueError(
                f"layer: {type(layer).__name__} has no kernel (d, K); give a Flax "
                "linear layer"
            )
        weight = jnp.asarray(kernel[...]).T
        return cls(
            weight,
            jnp.zeros(weight.shape[:1], weight.dtype)
            if bias is None
            else jnp.asarray(bias[...]),
        )

    @classmethod
    def checked(
        cls,
        weight: ArrayLike,
        bias: ArrayLike | None,
        num_classes: int,
        dim: int,
        dtype: DTypeLike = np.float32,
    ) -> SoftmaxHead:
        """A head from arrays of the user's, checked against the source it belongs to.

        Raises:
          ValueError: for a wrong shape or dtype, or NaN; names the argument.
        """
        given = (
            np.asarray(weight),
            np.zeros(num_classes) if bias is None else np.asarray(bias),
        )
        for name, array in zip(("weight", "bias"), given, strict=True):
            if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
                raise ValueError(
                    f"head: {name} has dtype {array.dtype}; give real numbers"
                )
        weights, biases = (array.astype(dtype) for array in given)
        if weights.shape != (num_classes, dim):
            hint = (
                "; it looks transposed, pass weight.T"
                if weights.shape == (dim, num_classes)
                else ""
            )
            raise ValueError(
                f"head: weight has shape {weights.shape}, expected "
                f"{(num_classes, dim)} (classes, d){hint}"
            )
        if biases.shape != (num_classes,):
            raise ValueError(
                f"head: bias has shape {biases.shape}, expected ({num_classes},)"
            )
        if not (np.isfinite(weights).all() and np.isfinite(biases).all()):
            raise ValueError(
                "head: weight or bias holds NaN or infinity; check how it was saved"
            )
        return cls(weights, biases)


def pairwise_norm(
    rows: Float[Array, "K d"], active: Bool[Array, " K"] | None = None
) -> Float[Array, ""]:
    """`max_{j,k} ||r_j - r_k||_2` over the (active) rows of an `(K, d)` array, by
    direct differences.
    """

    def one(r, on):
        square = jnp.sum((rows - r[None]) ** 2, axis=1)
        keep = on if active is None else on & active
        return jnp.max(jnp.where(keep, square, 0.0))

    on = jnp.ones(rows.shape[0], bool) if active is None else active
    worst = jnp.max(jax.lax.map(lambda pair: one(*pair), (rows, on)))
    # The square root has an infinite slope at 0: a head without weights has constant 0
    # and gradient 0.
    return jnp.where(worst > 0, jnp.sqrt(jnp.where(worst > 0, worst, 1.0)), 0.0)


def lipschitz_constant(weight: ArrayLike, active: Array | None = None) -> Array:
    """The certified constant `tau = max_{j,k} ||w_j - w_k||_2` of
    `x -> l(B softmax(W x + c), t)`, for every B and t.

    `weight` is `(K, d)`: `W A^-1` for a transformed classifier (docs/theory.md, section
    3.3). Pairs of inactive classes are left out.
    """
    return pairwise_norm(jnp.asarray(weight), active)


def own_losses(
    head: SoftmaxHead,
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    active: Bool[Array, " K"],
) -> Float[Array, " n"]:
    """Cross-entropy of each item among the active classes, `(n,)` nats."""
    log_p = jax.nn.log_softmax(jnp.where(active, head.logits(features), -jnp.inf))
    return -jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]


def clip_lipschitz(
    head: SoftmaxHead, lipschitz: ArrayLike, active: Array | None = None
) -> SoftmaxHead:
    """The head with its rows scaled down until its certified constant is at most
    `lipschitz`.
    """
    tau = lipschitz_constant(head.weight, active)
    over = tau > lipschitz
    return SoftmaxHead(
        head.weight * jnp.where(over, lipschitz / jnp.where(over, tau, 1.0), 1.0),
        head.bias,
    )


def empty_head(
    num_classes: int, dim: int, dtype: DTypeLike = jnp.float32
) -> SoftmaxHead:
    return SoftmaxHead(
        jnp.zeros((num_classes, dim), dtype), jnp.zeros(num_classes, dtype)
    )
