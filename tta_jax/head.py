"""The source classifier `h(z) = softmax(W z + c)` and how it is fitted."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tta_jax.task import Standardizer, Task

Array = jax.Array
ArrayLike = Any

L2_GRID = (3e-1, 3e-2, 3e-3, 3e-4, 3e-5)
_MOST_ITEMS_FOR_CHOICE = 4096  # weight decay is chosen on at most so many items


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
        return jnp.asarray(features) @ jnp.asarray(self.weight).T + self.bias

    def predict_proba(self, features: ArrayLike) -> Array:
        """`softmax(W z + c)`, `(n, K)`."""
        return jax.nn.softmax(self.logits(features))

    @property
    def num_classes(self) -> int:
        return self.weight.shape[0]

    @classmethod
    def checked(cls, weight: ArrayLike, bias: ArrayLike | None, num_classes: int, dim: int) -> SoftmaxHead:
        """A head from arrays of the user's, checked against the source it belongs to.

        Raises:
          ValueError: for a wrong shape or NaN; names the argument.
        """
        weight = np.asarray(weight, np.float32)
        bias = np.zeros(num_classes, np.float32) if bias is None else np.asarray(bias, np.float32)
        if weight.shape != (num_classes, dim):
            hint = "; it looks transposed, pass weight.T" if weight.shape == (dim, num_classes) else ""
            raise ValueError(f"head: weight has shape {weight.shape}, expected {(num_classes, dim)} (classes, d){hint}")
        if bias.shape != (num_classes,):
            raise ValueError(f"head: bias has shape {bias.shape}, expected ({num_classes},)")
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise ValueError("head: weight or bias holds NaN or infinity; check how it was saved")
        return cls(weight, bias)


def pairwise_norm(rows: Array, active: Array | None = None) -> Array:
    """`max_{j,k} ||r_j - r_k||_2` over the (active) rows of an `(K, d)` array, by direct differences."""

    def one(r, on):
        square = jnp.sum((rows - r) ** 2, axis=1)
        keep = on if active is None else on & active
        return jnp.max(jnp.where(keep, square, 0.0))

    on = jnp.ones(rows.shape[0], bool) if active is None else active
    worst = jnp.max(jax.lax.map(lambda pair: one(*pair), (rows, on)))
    # The square root has an infinite slope at 0: a head without weights has constant 0 and gradient 0.
    return jnp.where(worst > 0, jnp.sqrt(jnp.where(worst > 0, worst, 1.0)), 0.0)


def lipschitz_constant(weight: ArrayLike, active: Array | None = None) -> Array:
    """The certified constant `tau = max_{j,k} ||w_j - w_k||_2` of `x -> l(B softmax(W x + c), t)`, for every B and t.

    `weight` is `(K, d)`: `W A^-1` for a transformed classifier (spec, section 3). Pairs of inactive classes are left out.
    """
    return pairwise_norm(jnp.asarray(weight), active)


def class_losses(head: SoftmaxHead, features: Array, labels: Array, weights: Array) -> Array:
    """Weighted cross-entropy of each item, `(n,)` nats."""
    log_p = jax.nn.log_softmax(head.logits(features))
    return weights * -jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]


@partial(jax.jit, static_argnames=("constrained", "steps"))
def minimise_cross_entropy(
    start: SoftmaxHead,
    features: Array,
    labels: Array,
    weights: Array,
    active: Array,
    l2: Array,
    lipschitz: Array,
    *,
    constrained: bool = False,
    steps: int = 150,
) -> SoftmaxHead:
    """Multinomial logistic regression by L-BFGS: weighted mean loss + `l2 / 2 ||W||^2`.

    Args:
      start: where to start; its shape `(K, d)` is the result's.
      features, labels, weights: `(n, d)`, `(n,)`, `(n,)`; the weights need not be normalised, 0 for padding.
      active: `(K,)` bool; inactive classes get no probability and zero rows.
      l2, lipschitz: scalars; `lipschitz` counts only when `constrained`.
    """
    weights = weights / jnp.sum(weights)
    penalty_off = jnp.where(active, 0.0, -jnp.inf).astype(features.dtype)

    def shrink(head: SoftmaxHead) -> SoftmaxHead:
        weight = jnp.where(active[:, None], head.weight, 0.0)
        if constrained:
            # Certified by construction: the rows are scaled down whenever they would exceed the constant.
            tau = lipschitz_constant(weight, active)
            weight = weight * jnp.minimum(1.0, lipschitz / jnp.maximum(tau, jnp.finfo(tau.dtype).tiny))
        return SoftmaxHead(weight, jnp.where(active, head.bias, 0.0))

    def objective(head: Any) -> Array:
        head = shrink(head)
        log_p = jax.nn.log_softmax(head.logits(features) + penalty_off)
        loss = -jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
        return jnp.sum(jnp.where(weights > 0, weights * loss, 0.0)) + 0.5 * l2 * jnp.sum(head.weight**2)

    solver = optax.lbfgs(memory_size=10, linesearch=optax.scale_by_zoom_linesearch(max_linesearch_steps=15))
    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(carry: Any) -> Any:
        head, state, count, _ = carry
        value, grad = value_and_grad(head, state=state)
        update, state = solver.update(grad, state, head, value=value, grad=grad, value_fn=objective)
        new = optax.apply_updates(head, update)
        slope = optax.tree_utils.tree_norm(grad)
        return new, state, count + 1, slope

    def unfinished(carry):
        _, _, count, slope = carry
        return (count < steps) & (slope > 3e-5)

    initial: Any = start
    begin = (start, solver.init(initial), jnp.asarray(0), jnp.asarray(jnp.inf, features.dtype))
    head, *_ = jax.lax.while_loop(unfinished, step, begin)
    return shrink(head)


def empty_head(num_classes: int, dim: int, dtype: Any = jnp.float32) -> SoftmaxHead:
    return SoftmaxHead(jnp.zeros((num_classes, dim), dtype), jnp.zeros(num_classes, dtype))


@partial(jax.jit, static_argnames=("num_classes",))
def _held_out_loss(fit, held, active, grid, num_classes):
    """Held-out loss at each decay of `grid`, along a path from the strongest to the weakest, `(len(grid),)`."""
    features, labels, weights = fit

    def one(head, l2):
        head = minimise_cross_entropy(head, features, labels, weights, active, l2, jnp.inf, steps=30)
        losses = class_losses(head, held[0], held[1], held[2])
        return head, jnp.sum(losses) / jnp.sum(held[2])

    start = empty_head(num_classes, features.shape[1], features.dtype)
    return jax.lax.scan(one, start, grid)[1]


def choose_l2(features: ArrayLike, labels: ArrayLike, weights: ArrayLike, num_classes: int, seed: int = 0) -> float:
    """Weight decay by hold-out (one item in four), on at most 4,096 items; host entry, compiled once per shape.

    The decay that suits m items is taken to suit n of them when divided by n / m, as a Gaussian prior's is.
    """
    rng = np.random.default_rng(seed)
    usable = np.flatnonzero(np.asarray(weights) > 0)
    if len(usable) < 8:
        return 1e-2
    chosen = rng.permutation(usable)[:_MOST_ITEMS_FOR_CHOICE]
    # Padded to a power of two, so that parts of nearly equal size share one compilation.
    size = 1 << (len(chosen) - 1).bit_length()
    index = np.zeros(size, np.int64)
    index[: len(chosen)] = chosen
    inside = np.arange(size) < len(chosen)
    held = inside & (np.arange(size) % 4 == 3)
    x, y, w = (jnp.asarray(np.asarray(a)[index]) for a in (features, labels, weights))
    losses = _held_out_loss(
        (x, y, w * (inside & ~held)),
        (x, y, w * held),
        jnp.ones(num_classes, bool),
        jnp.asarray(L2_GRID, x.dtype),
        num_classes,
    )
    best = L2_GRID[int(np.nanargmin(np.asarray(losses)))]
    return best * min(1.0, 0.75 * len(chosen) / len(usable))


def fit_head(
    source: Task,
    lipschitz: float | None = None,
    l2: float | None = None,
    key: Array | None = None,
) -> SoftmaxHead:
    """Fit `h(z) = softmax(W z + c)` to a source task.

    The features are standardised inside and the head is returned for the raw ones.

    Args:
      source: the task; unlabelled items are left out.
      lipschitz: a bound on the certified constant `max ||w_j - w_k||_2` of the head (per unit of the raw features).
      l2: weight decay on standardised features; by hold-out when None.
      key: decides the hold-out.

    Raises:
      ValueError: fewer than two classes, or a `lipschitz` or `l2` that is not positive.
    """
    if source.num_classes < 2:
        raise ValueError(f"source: task {source.name!r} has {source.num_classes} class; a classifier needs at least 2")
    for name, value in (("lipschitz", lipschitz), ("l2", l2)):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name}: found {value}; give a positive number or None")
    scaler = Standardizer.fit(np.asarray(source.features)) if lipschitz is None else Standardizer.identity(source.dim)
    x = jnp.asarray(scaler(source.features))
    y, w = jnp.asarray(source.labels), jnp.asarray(source.labelled, x.dtype)
    if l2 is None:
        seed = 0 if key is None else int(jax.random.randint(key, (), 0, 2**31 - 1))
        l2 = choose_l2(x, y, w, source.num_classes, seed)
    head = minimise_cross_entropy(
        empty_head(source.num_classes, source.dim, x.dtype),
        x, y, w, jnp.ones(source.num_classes, bool), jnp.asarray(l2, x.dtype),
        jnp.asarray(np.inf if lipschitz is None else lipschitz, x.dtype),
        constrained=lipschitz is not None,
    )  # fmt: skip
    return SoftmaxHead(*scaler.fold_into(head.weight, head.bias))
