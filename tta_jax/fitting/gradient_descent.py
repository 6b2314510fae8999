"""Minimise a rung of the bound by Adam on class-balanced batches."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from tta_jax._internal.typing import Array, ArrayLike
from tta_jax.bounds.chain import lipschitz_of_map, sort_by_class
from tta_jax.core import coupling
from tta_jax.core.feature_maps import FeatureMap
from tta_jax.core.heads import SoftmaxHead, clip_lipschitz
from tta_jax.core.losses import (
    class_mean,
    directed_cost,
    euclidean_cost,
    expected_loss,
    log_head,
    loss_of_class,
    oscillation_cost,
    own_class_losses,
    quantile_coupling,
    reweighted_source_loss,
)
from tta_jax.tasks.task import Samples
from tta_jax.transport.certified_cost import certify_cost
from tta_jax.transport.sinkhorn import sinkhorn


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Params:
    """What gradients may change: label logits, feature map, and the head where it is
    not the user's.
    """

    theta: ArrayLike
    feature_map: FeatureMap
    head: SoftmaxHead


class State(NamedTuple):
    """What the loop carries."""

    params: Any  # Params; optax does not say so of what it updates
    opt_state: optax.OptState
    potential: (
        Array  # g of every target item, (n_T,): warm start of its class's transport
    )
    best: Any
    best_value: Array
    best_step: Array
    key: Array


class Info(NamedTuple):
    """What it records after every `CHECK` steps, stacked.

    Attributes:
      objective: mean objective over the steps, on their batches.
      validation: objective on the validation part.
      grad_norm: of the last step.
    """

    objective: Array
    validation: Array
    grad_norm: Array


VALIDATION_INTERVAL = 10  # optimiser steps between two looks at the validation part
_INNER = 5  # Sinkhorn iterations per step, from the last step's potentials


def _sample_balanced_batch(slots, size: int, key: Array) -> tuple[Array, Array]:
    """`(K, size)` item indices, uniform within each class without needless repeats, and
    how many count.
    """
    order, first, counts = slots
    # A random rotation of evenly spaced positions: distinct whenever the class has at
    # least `size` items.
    phase = jax.random.uniform(key, (counts.shape[0], 1))
    most = jnp.maximum(counts, 1)[:, None]
    place = (
        (jnp.arange(size, dtype=phase.dtype)[None] + phase)
        / size
        * most.astype(phase.dtype)
    )
    offset = jax.random.randint(
        jax.random.fold_in(key, 1), most.shape, 0, most, most.dtype
    )
    position = (place.astype(jnp.int32) + offset) % most
    index = order[jnp.minimum(first[:, None] + position, order.shape[0] - 1)]
    return index, counts > 0


def batch_objective(
    params: Params,
    source: Samples,
    target: Samples,
    rows: tuple[Array, Array],
    columns: tuple[Array, Array],
    potential: Array,
    candidates: Array,
    log_prior: Array,
    epsilon: Array,
    *,
    objective: str,
    iterations: int,
) -> tuple[Array, Array]:
    """The objective on class-balanced items and the updated target potentials
    `(K_T, b)`.

    Args:
      rows, columns: `(K_S, b)` source and `(K_T, b)` target items and which classes
        have any.
      potential: `(K_T, b)`, where Sinkhorn starts.
      candidates: `(K_T, q)` source classes that target class t may draw on.
      log_prior: `(K_T,)` log p_T.
    """
    head, phi = params.head, params.feature_map
    log_joint = coupling.log_coupling(params.theta, log_prior, rows[1])
    log_b = coupling.log_mixing(log_joint)
    active = lax.stop_gradient(coupling.log_source_prior(log_joint)) > -jnp.inf
    size = rows[0].shape[1]
    z = source.features[rows[0]]  # (K_S, b, d)
    logits = head.logits(z)
    u = target.features[columns[0]]  # (K_T, b, d)
    target_logits = jax.vmap(lambda x: phi.target_logits(head, x))(u)
    p = jnp.exp(log_prior)
    if objective == "score":
        log_h = jax.vmap(lambda s: log_head(s, active))(target_logits)
        losses = jax.vmap(loss_of_class)(log_h, log_b)
        return jnp.sum(jnp.where(p > 0, p * jnp.mean(losses, axis=1), 0.0)), potential
    mapped = jax.vmap(phi)(z) if objective == "theorem" else None

    def one(t):
        classes = candidates[t]
        s = logits[classes].reshape(-1, logits.shape[-1])
        q = jnp.repeat(jnp.exp(log_joint[t, classes]) / size, size)
        r = jnp.full(size, p[t] / size, q.dtype)
        losses = loss_of_class(log_head(s, active), log_b[t])
        expected = expected_loss(losses, q)
        if objective == "tight":
            target_losses = loss_of_class(log_head(target_logits[t], active), log_b[t])
            return quantile_coupling(losses, q, target_losses, r), potential[t]
        rows_t = s
        if objective == "directed":

            def cost(x):
                return directed_cost(x, target_logits[t], log_b[t] > -jnp.inf, active)

        elif objective == "oscillation":

            def cost(x):
                return oscillation_cost(x, target_logits[t], active)

        else:
            assert mapped is not None

            def cost(x):
                return euclidean_cost(x, u[t])

            rows_t = mapped[classes].reshape(-1, u.shape[-1])
        matrix = cost(rows_t)
        found = sinkhorn(
            matrix,
            q,
            r,
            epsilon,
            start=potential[t],
            max_iterations=iterations,
            fixed=True,
        )
        moved = certify_cost(lambda c: c, matrix[None], q[None], r, found)
        value = moved.upper if objective == "theorem" else expected + moved.upper
        return value, found.g

    parts, potentials = lax.map(one, jnp.arange(log_prior.shape[0]))
    total = jnp.sum(jnp.where(p > 0, parts, 0.0))
    if objective == "theorem":
        labels = jnp.repeat(jnp.arange(logits.shape[0]), size)
        own = own_class_losses(logits.reshape(-1, logits.shape[-1]), labels, active)
        means, _ = class_mean(own, labels, jnp.repeat(rows[1], size), logits.shape[0])
        reweighted = reweighted_source_loss(log_joint, means)
        total = (
            reweighted
            + coupling.label_mismatch(log_joint)
            + lipschitz_of_map(phi, head, active) * total
        )
    return total, potentials


@partial(
    jax.jit,
    static_argnames=("objective", "learn", "learn_head", "batch_size", "checks"),
)
def minimise(
    start: Params,
    source: Samples,
    target: Samples,
    validation: tuple[Samples, Samples],
    candidates: Array,
    log_prior: Array,
    epsilon: Array,
    learning_rate: Array,
    key: Array,
    lipschitz: Array | None = None,
    *,
    objective: str,
    learn: str,
    learn_head: bool,
    batch_size: int,
    checks: int,
) -> tuple[Params, Array, Array, Info]:
    """Adam on the objective in one `lax.scan`; the best iterate on the validation part
    is kept, the start included.

    With `lipschitz` the head that is used, and returned, has a certified constant of at
    most that.

    Returns the best parameters, their validation objective, the step at which they were
    found (0 is the start), and Info. Batch it over restarts with `jax.vmap` over
    `start` and `key`.
    """
    num_targets, num_sources = start.theta.shape
    slots_s = sort_by_class(source.labels, source.mask, num_sources)
    slots_t = sort_by_class(target.labels, target.mask, num_targets)
    val_s, val_t = validation
    check_size = 2 * batch_size
    val_rows = _sample_balanced_batch(
        sort_by_class(val_s.labels, val_s.mask, num_sources),
        check_size,
        jax.random.key(0),
    )
    val_columns = _sample_balanced_batch(
        sort_by_class(val_t.labels, val_t.mask, num_targets),
        check_size,
        jax.random.key(1),
    )
    val_prior = jnp.where(val_columns[1], log_prior, -jnp.inf)
    val_prior = val_prior - jax.nn.logsumexp(val_prior)
    options: dict[str, Any] = {"objective": objective}

    def limited(params: Params) -> Params:
        return (
            params
            if lipschitz is None
            else dataclasses.replace(
                params, head=clip_lipschitz(params.head, lipschitz)
            )
        )

    def validate(params):
        zeros = jnp.zeros((num_targets, check_size), log_prior.dtype)
        value, _ = batch_objective(
            limited(params),
            val_s,
            val_t,
            val_rows,
            val_columns,
            zeros,
            candidates,
            val_prior,
            epsilon,
            iterations=40,
            **options,
        )
        return value

    frozen = Params(
        theta="learn" if learn == "all" else "freeze",
        feature_map=jax.tree.map(
            lambda _: "freeze" if learn == "none" else "learn", start.feature_map
        ),
        head=jax.tree.map(lambda _: "learn" if learn_head else "freeze", start.head),
    )
    optimiser = optax.chain(
        optax.clip_by_global_norm(10.0),
        optax.partition(
            {"learn": optax.scale_by_adam(), "freeze": optax.set_to_zero()}, frozen
        ),
    )
    total_steps = max(1, checks * VALIDATION_INTERVAL)

    def step(carry, index):
        params, opt_state, potential, key = carry
        key, sub = jax.random.split(key)
        rows = _sample_balanced_batch(slots_s, batch_size, sub)
        columns = _sample_balanced_batch(
            slots_t, batch_size, jax.random.fold_in(sub, 7)
        )

        def loss(params):
            return batch_objective(
                limited(params),
                source,
                target,
                rows,
                columns,
                potential[columns[0]],
                candidates,
                log_prior,
                epsilon,
                iterations=_INNER,
                **options,
            )

        (value, found), grad = jax.value_and_grad(loss, has_aux=True)(params)
        potential = potential.at[columns[0].ravel()].set(found.ravel())
        norm = optax.tree_utils.tree_norm(grad)
        # A step whose gradient is not finite is skipped rather than allowed to spoil
        # what was learned.
        grad = jax.tree.map(lambda g: jnp.where(jnp.isfinite(norm), g, 0.0), grad)
        with jax.numpy_dtype_promotion("standard"):  # optax counts steps in integers
            update, opt_state = optimiser.update(grad, opt_state, params)
        rate = (
            learning_rate
            * 0.5
            * (1 + jnp.cos(jnp.pi / total_steps * index.astype(learning_rate.dtype)))
        )
        params = optax.apply_updates(
            params, jax.tree.map(lambda v: -rate.astype(v.dtype) * v, update)
        )
        return (params, opt_state, potential, key), (value, norm)

    def check(state: State, number):
        carry = (state.params, state.opt_state, state.potential, state.key)
        (params, opt_state, potential, key), (values, norms) = lax.scan(
            step, carry, number * VALIDATION_INTERVAL + jnp.arange(VALIDATION_INTERVAL)
        )
        value = validate(params)
        better = value < state.best_value
        best = jax.tree.map(
            lambda new, old: jnp.where(better, new, old), params, state.best
        )
        state = State(
            params,
            opt_state,
            potential,
            best,
            jnp.where(better, value, state.best_value),
            jnp.where(better, (number + 1) * VALIDATION_INTERVAL, state.best_step),
            key,
        )
        return state, Info(jnp.mean(values), value, norms[-1])

    potential = jnp.zeros(target.features.shape[0], log_prior.dtype)
    initial: Any = start
    begin = State(
        start,
        optimiser.init(initial),
        potential,
        start,
        validate(start),
        jnp.asarray(0),
        key,
    )
    final, info = lax.scan(check, begin, jnp.arange(checks))
    return limited(final.best), final.best_value, final.best_step, info
