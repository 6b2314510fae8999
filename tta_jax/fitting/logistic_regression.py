"""Fit softmax heads by regularised multinomial logistic regression."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, Int

from tta_jax._internal.numbers import real_number
from tta_jax._internal.padding import pad_length, pad_rows
from tta_jax._internal.typing import Array, ArrayLike
from tta_jax.core.heads import SoftmaxHead, clip_lipschitz, empty_head, own_losses
from tta_jax.core.linalg import matmul, solve_positive
from tta_jax.core.losses import expected_loss
from tta_jax.tasks.standardizer import Standardizer
from tta_jax.tasks.task import Task

L2_GRID = (3e-1, 3e-2, 3e-3, 3e-4, 3e-5)
_MOST_ITEMS_FOR_CHOICE = 8192  # weight decay is chosen on at most so many items


def lbfgs(memory_size: int) -> optax.GradientTransformationExtraArgs:
    """L-BFGS with backtracking from step 1: all that a convex loss needs, and sooner
    compiled than a zoom.
    """
    search = optax.scale_by_backtracking_linesearch(
        max_backtracking_steps=12,
        decrease_factor=0.5,
        increase_factor=jnp.inf,
        max_learning_rate=1.0,
        store_grad=True,
    )
    return optax.lbfgs(memory_size=memory_size, linesearch=search)


@partial(jax.jit, static_argnames=("steps", "tolerance"))
def minimise_cross_entropy(
    start: SoftmaxHead,
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    weights: Float[Array, " n"],
    active: Bool[Array, " K"],
    l2: Float[Array, ""],
    lipschitz: Float[Array, ""] | None = None,
    *,
    steps: int = 150,
    tolerance: float = 3e-5,
) -> SoftmaxHead:
    """Multinomial logistic regression by L-BFGS: weighted mean loss + `l2 / 2 ||W||^2`.

    Args:
      start: where to start; its shape `(K, d)` is the result's.
      features, labels, weights: `(n, d)`, `(n,)`, `(n,)`; the weights need not be
        normalised, 0 for padding.
      active: `(K,)` bool; inactive classes get no probability and zero rows.
      l2: scalar.
      lipschitz: scalar bound on the certified constant, or None for none.
      steps, tolerance: at most so many steps; it stops sooner where the gradient's norm
        is below `tolerance`.
    """
    weights = weights / jnp.sum(weights)

    def shrink(head: SoftmaxHead) -> SoftmaxHead:
        # Certified by construction: whatever the parameters are, the head that is used
        # keeps to the constant.
        head = SoftmaxHead(
            jnp.where(active[:, None], head.weight, 0.0),
            jnp.where(active, head.bias, 0.0),
        )
        return head if lipschitz is None else clip_lipschitz(head, lipschitz, active)

    def objective(head: Any) -> Array:
        head = shrink(head)
        loss = own_losses(head, features, labels, active)
        return jnp.sum(
            jnp.where(weights > 0, weights * loss, 0.0)
        ) + 0.5 * l2 * jnp.sum(head.weight**2)

    solver = lbfgs(memory_size=10)
    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(carry: Any) -> Any:
        head, state, count, _ = carry
        value, grad = value_and_grad(head, state=state)
        with jax.numpy_dtype_promotion("standard"):  # optax counts steps in integers
            update, state = solver.update(
                grad, state, head, value=value, grad=grad, value_fn=objective
            )
        new = optax.apply_updates(head, update)
        slope = optax.tree_utils.tree_norm(grad)
        return new, state, count + 1, slope

    def unfinished(carry):
        _, _, count, slope = carry
        return (count < steps) & (slope > tolerance)

    initial: Any = shrink(start)
    begin = (
        initial,
        solver.init(initial),
        jnp.asarray(0),
        jnp.asarray(jnp.inf, features.dtype),
    )
    head, *_ = jax.lax.while_loop(unfinished, step, begin)
    return shrink(head)


def penalised_path(
    start: SoftmaxHead,
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    weights: Float[Array, " n"],
    log_b: Float[Array, "K_T K"] | None,
    active: Bool[Array, " K"],
    pulls: Float[Array, " p"],
    moments: Float[Array, "d+1 d+1"],
    *,
    begin: SoftmaxHead | None = None,
    steps: int = 12,
) -> SoftmaxHead:
    """Heads that minimise `mean loss of B h + pull / 2 ||W - W_0||^2`, along falling
    pulls, each begun at the one before.

    The Hessian of `-log (B h)_t` in the logits lies below `(I - 1 1^T / K) / 2`
    (Boehning 1992; subtracting the posterior's covariance only lowers it), so one
    inverse for each pull gives steps that need no line search; Nesterov's momentum,
    restarted when it points uphill, makes them fast. Few steps are meant: stopping
    early regularises, too. It compiles five times sooner than L-BFGS.

    Args:
      start: `W_0 (K, d)` and its bias, which is not pulled.
      features, labels, weights: `(n, d)`, `(n,)`, `(n,)`; 0 for padding.
      log_b: `(K_T, K)`, `log B`; None for a plain classifier, B = I.
      active: `(K,)` bool.
      pulls: `(p,)`.
      moments: `(d + 1, d + 1)`, at least the weighted mean of `x x^T` for x with a 1
        appended (`second_moments`).
      begin: where the first pull's steps begin; `start` by default.

    Returns:
      Heads with a leading axis `(p,)`.
    """
    rows, share = _with_one(features), _shares(weights)
    ridge = 1e-6 * (1 + jnp.trace(moments) / rows.shape[1])
    pulled = jnp.ones(rows.shape[1], rows.dtype).at[-1].set(0.0)

    def one_array(head):
        return jnp.concatenate([head.weight, head.bias[:, None]], axis=1)

    first = one_array(start)

    if log_b is None:

        def posterior(logits):
            return jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
    else:

        def posterior(logits):
            return jax.nn.softmax(logits + log_b[labels], axis=1)

    def solve(previous, pull):
        curvature = 0.5 * moments + jnp.diag(pull * pulled + ridge)
        # The inverse itself, since products with it are all that steps need, and are
        # fast everywhere.
        inverse = solve_positive(curvature, jnp.eye(rows.shape[1], dtype=rows.dtype))

        def step(carry, _):
            here, last, momentum = carry
            logits = jnp.where(active, matmul(rows, here.T), -jnp.inf)
            # Padding may carry the label of a class that nothing can give: its
            # posterior is NaN.
            gap = jnp.where(
                share[:, None] > 0,
                jax.nn.softmax(logits, axis=1) - posterior(logits),
                0.0,
            )
            slope = matmul((gap * share[:, None]).T, rows) + pull * pulled[None] * (
                here - first
            )
            new = here - matmul(slope, inverse)
            momentum = jnp.where(jnp.sum(slope * (new - last)) > 0, 1.0, momentum)
            grown = 0.5 * (1 + jnp.sqrt(1 + 4 * momentum**2))
            return (new + (momentum - 1) / grown * (new - last), new, grown), None

        (_, last, _), _ = jax.lax.scan(
            step, (previous, previous, jnp.ones((), rows.dtype)), None, length=steps
        )
        return last, last

    found = jax.lax.scan(solve, first if begin is None else one_array(begin), pulls)[1]
    return SoftmaxHead(found[..., :-1], found[..., -1])


def second_moments(
    features: Float[Array, "n d"], weights: Float[Array, " n"]
) -> Float[Array, "d+1 d+1"]:
    """Weighted mean of `x x^T`, `(d + 1, d + 1)`, for x with a 1 appended."""
    rows = _with_one(features)
    return matmul((rows * _shares(weights)[:, None]).T, rows)


def _with_one(features: Array) -> Array:
    return jnp.concatenate([features, jnp.ones_like(features[:, :1])], axis=1)


def _shares(weights: Array) -> Array:
    """Weights with sum 1, or zeros."""
    return weights / jnp.maximum(jnp.sum(weights), jnp.finfo(weights.dtype).tiny)


class DecayPath(NamedTuple):
    """Heads fitted to few items along falling weight decays.

    Attributes:
      heads: a `SoftmaxHead` with a leading axis, one entry for each decay.
      losses: their held-out losses, `(len(L2_GRID),)` nats; inf without a hold-out.
      decays: what the decays amount to for all items: those of m items divided by n /
        m, as a Gaussian prior's are.
    """

    heads: SoftmaxHead
    losses: np.ndarray
    decays: np.ndarray

    @property
    def l2(self) -> float:
        """The decay of least held-out loss."""
        losses = np.where(np.isnan(self.losses), np.inf, self.losses)
        best = int(np.argmin(losses)) if np.isfinite(losses).any() else 1
        return float(self.decays[best])

    def head(self, l2: float) -> SoftmaxHead:
        """The head whose decay is closest to `l2`."""
        nearest = int(np.argmin(np.abs(np.log(self.decays / l2))))
        return jax.tree.map(lambda v: v[nearest], self.heads)


@partial(jax.jit, static_argnames=("steps",))
def regularization_path(
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    train: Float[Array, " n"],
    held: Float[Array, " n"],
    active: Bool[Array, " K"],
    decays: Float[Array, " p"],
    begin: SoftmaxHead,
    *,
    steps: int = 10,
) -> tuple[SoftmaxHead, Float[Array, " p"]]:
    """Heads along the decays, `(len(decays), K, d)`, and their mean losses on held-out
    items; inf without any.
    """
    zeros = empty_head(active.shape[0], features.shape[1], features.dtype)
    begin = SoftmaxHead(
        jnp.where(active[:, None], begin.weight, 0.0),
        jnp.where(active, begin.bias, 0.0),
    )
    heads = penalised_path(
        zeros,
        features,
        labels,
        train,
        None,
        active,
        decays,
        second_moments(features, train),
        begin=begin,
        steps=steps,
    )
    losses = jax.vmap(
        lambda head: expected_loss(own_losses(head, features, labels, active), held)
    )(heads)
    total = jnp.sum(held)
    return heads, jnp.where(
        total > 0, losses / jnp.where(total > 0, total, 1.0), jnp.inf
    )


def refit_head(
    start: SoftmaxHead,
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    weights: Float[Array, " n"],
    active: Bool[Array, " K"],
    l2: Float[Array, ""],
    *,
    steps: int,
) -> SoftmaxHead:
    """Fit on from a head that is nearly right, by so many steps at one decay.

    Args:
      start: `(K, d)`.
      features, labels, weights: `(n, d)`, `(n,)`, `(n,)`; 0 for padding.
      active: `(K,)` bool; other classes get no probability.
      l2: weight decay.
      steps: at most.
    """
    heads, _ = regularization_path(
        features,
        labels,
        weights,
        jnp.zeros_like(weights),
        active,
        l2[None],
        start,
        steps=steps,
    )
    return jax.tree.map(lambda v: v[0], heads)


def decay_path(
    features: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike,
    num_classes: int,
    seed: int = 0,
) -> DecayPath:
    """Heads along `L2_GRID`, one in four items held out; host entry.

    Looks at all items where there are at most 8,192, at a random choice otherwise.
    Items of weight 0 are padding.
    """
    n, labels = len(labels), np.asarray(labels)
    usable = np.flatnonzero(np.asarray(weights) > 0)
    chosen = np.random.default_rng(seed).permutation(usable)[:_MOST_ITEMS_FOR_CHOICE]
    learns, held = np.zeros(n, bool), np.zeros(n, bool)
    learns[chosen] = True
    if len(chosen) >= 8:
        held[chosen[3::4]] = True
    # Decays count per standardised feature; features in other units have decays to
    # match.
    rows = np.asarray(features)[chosen]
    decays = np.asarray(L2_GRID) * max(
        float(rows.var(axis=0, dtype=np.float64).mean()), 1e-30
    )
    if n > _MOST_ITEMS_FOR_CHOICE:
        features, labels, learns, held = (
            rows,
            labels[chosen],
            learns[chosen],
            held[chosen],
        )
    if pad_length(len(labels)) > len(labels):
        size = pad_length(len(labels))
        features, labels, learns, held = (
            pad_rows(np.asarray(v), size) for v in (features, labels, learns, held)
        )
    dtype = rows.dtype
    active = np.bincount(np.asarray(labels)[learns], minlength=num_classes) > 0
    heads, losses = jax.device_get(
        regularization_path(
            features,
            labels,
            (learns & ~held).astype(dtype),
            held.astype(dtype),
            active,
            decays.astype(dtype),
            SoftmaxHead(
                np.zeros((num_classes, rows.shape[1]), dtype),
                np.zeros(num_classes, dtype),
            ),
        )
    )
    return DecayPath(
        heads, losses, decays * min(1.0, float((learns & ~held).sum()) / len(usable))
    )


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
      lipschitz: a bound on the certified constant `max ||w_j - w_k||_2` of the head
        (per unit of the raw features).
      l2: weight decay on standardised features; by hold-out when None.
      key: decides the hold-out.

    Raises:
      ValueError: fewer than two classes, no labels, or a `lipschitz` or `l2` that is
        not positive.
    """
    if source.num_classes < 2:
        raise ValueError(
            f"source: task {source.name!r} has {source.num_classes} class; a "
            "classifier needs at least 2"
        )
    if not np.asarray(source.labelled).any():
        raise ValueError(
            f"source: task {source.name!r} has no labels; a classifier learns from them"
        )
    for name, value in (("lipschitz", lipschitz), ("l2", l2)):
        if value is not None and not 0 < real_number(value) < np.inf:
            raise ValueError(f"{name}: found {value!r}; give a positive number or None")
    scaler = (
        Standardizer.fit(np.asarray(source.features))
        if lipschitz is None
        else Standardizer.identity(source.dim)
    )
    x = jnp.asarray(scaler(source.features))
    y, w = jnp.asarray(source.labels), jnp.asarray(source.labelled, x.dtype)
    start = empty_head(source.num_classes, source.dim, x.dtype)
    if l2 is None:
        seed = 0 if key is None else int(jax.random.randint(key, (), 0, 2**31 - 1))
        path = decay_path(x, y, w, source.num_classes, seed)
        l2 = path.l2
        start = path.head(l2)
    head = minimise_cross_entropy(
        start,
        x,
        y,
        w,
        jnp.ones(source.num_classes, bool),
        jnp.asarray(l2, x.dtype),
        None if lipschitz is None else jnp.asarray(lipschitz, x.dtype),
    )
    return SoftmaxHead(*scaler.fold_into(head.weight, head.bias))
