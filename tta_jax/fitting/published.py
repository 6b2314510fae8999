"""The published algorithm [P], faithful to section 4 of the spec: penalised head, exact
plans, 1,001 Adam steps.

Batches are uniform and of equal size, so the exact plan is an assignment, found on the
device. Runs in float64, because the label cost of 1e8 beside distances of order 1 needs
it. What comes out is then certified like every other analysis; the paper's own bound,
with its uncertified Lipschitz constant, is recorded beside it.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Float

from tta_jax._internal.typing import Array
from tta_jax.bounds.chain import Transforms
from tta_jax.core.feature_maps import PublishedPair
from tta_jax.core.heads import SoftmaxHead, own_losses
from tta_jax.core.losses import class_mean, euclidean_cost
from tta_jax.tasks.task import Samples

BATCH = 500
LABEL_COST = 1e8
TAU = 0.2  # small-scale setting
HEAD_PASSES = 500
_PENALTY = 10.0


def penalised_head(
    samples: Samples, start: SoftmaxHead, key: Array, *, passes: int, tau: float = TAU
) -> SoftmaxHead:
    """The head retrained so that the norm of its loss gradient at true and random
    labels stays below `tau` [P].
    """
    index = np.flatnonzero(np.asarray(samples.mask))
    size = min(BATCH, len(index))
    steps = max(1, passes * (len(index) // size))
    return _train_penalised(
        samples.features[index],
        samples.labels[index],
        start,
        key,
        jnp.asarray(tau),
        size=size,
        steps=steps,
    )


@partial(jax.jit, static_argnames=("size", "steps"))
def _train_penalised(features, labels, start, key, tau, *, size, steps):
    optimiser = optax.adam(1e-3)
    classes = start.weight.shape[0]

    def objective(head, x, y, random):
        p = jax.nn.softmax(head.logits(x))
        loss = optax.softmax_cross_entropy_with_integer_labels(head.logits(x), y).mean()

        def excess(label):
            # The loss gradient with respect to the features is W'(p - e_label).
            gradient = (p - jax.nn.one_hot(label, classes, dtype=p.dtype)) @ head.weight
            norm = jnp.sqrt(jnp.sum(gradient**2, axis=1) + 1e-12)
            return jnp.mean(jax.nn.relu(norm - tau) ** 2)

        return loss + _PENALTY * (excess(y) + excess(random))

    def step(carry, key):
        head, state = carry
        pick, other = jax.random.split(key)
        rows = jax.random.randint(pick, (size,), 0, features.shape[0])
        random = jax.random.randint(other, (size,), 0, classes)
        gradient = jax.grad(objective)(head, features[rows], labels[rows], random)
        with jax.numpy_dtype_promotion("standard"):  # optax counts steps in integers
            update, state = optimiser.update(gradient, state, head)
        return (optax.apply_updates(head, update), state), None

    (head, _), _ = lax.scan(
        step, (start, optimiser.init(start)), jax.random.split(key, steps)
    )
    return head


class Learnable(NamedTuple):
    """A, Abar, b, and the logits of B (columns) and D."""

    pair: PublishedPair
    mixing: Float[Array, "K_T K_S"]
    prior: Float[Array, " K_S"]


def _objective(params: Learnable, plan_rows, z, y, u, v, class_loss, p_t):
    """Evaluate the published objective (docs/theory.md, section 4).

    `H + L_rw + 2 <plan, squared feature and label cost> + ||p_T - B D||^2` and the
    penalty on `A Abar - I`.
    """
    b, d = jax.nn.softmax(params.mixing, axis=0), jax.nn.softmax(params.prior)
    mapped = z @ params.pair.matrix.T + params.pair.shift[None]
    squared = jnp.sum((mapped - u[plan_rows]) ** 2, 1) + jnp.sum(
        (b.T[y] - v[plan_rows]) ** 2, 1
    )
    # B's entries stay positive under the softmax; the guard keeps an underflow from
    # becoming NaN.
    mismatch = -jnp.sum(d[None] * b * jnp.log(jnp.maximum(b, 1e-300)))
    return (
        mismatch
        + d @ class_loss
        + 2 * jnp.mean(squared)
        + jnp.sum((p_t - b @ d) ** 2)
        + params.pair.penalty()
    )


@partial(jax.jit, static_argnames=("steps", "learn"))
def _descend(start, source, target, class_loss, p_t, key, *, steps, learn):
    """`steps` Adam steps; each draws batches by D and p_T, plans exactly, and moves
    with the plan fixed.
    """
    z_all, y_all = source
    u_all, v_all = target
    classes_s, classes_t = start.prior.shape[0], p_t.shape[0]
    groups: list[Any] = ["pair", "labels", "prior"]
    if learn != "all":
        groups[1:] = ["fixed", "fixed"]
    labels = Learnable(*groups)
    optimiser = optax.partition(
        {
            "pair": optax.adam(1e-2),
            "labels": optax.adam(1e-2),
            "prior": optax.adam(1e-3),
            "fixed": optax.set_to_zero(),
        },
        Learnable(
            jax.tree.map(lambda _: "pair", start.pair), labels.mixing, labels.prior
        ),
    )
    count_s = jnp.maximum(jnp.bincount(y_all, length=classes_s), 1)
    log_count_t = jnp.log(jnp.maximum(jnp.bincount(v_all, length=classes_t), 1))

    def step(carry, key):
        params, state = carry
        key_s, key_t = jax.random.split(key)
        d = jax.nn.log_softmax(params.prior)
        rows = jax.random.categorical(
            key_s, (d - jnp.log(count_s))[y_all], shape=(BATCH,)
        )
        columns = jax.random.categorical(
            key_t, (jnp.log(p_t) - log_count_t)[v_all], shape=(BATCH,)
        )
        z, y, u = z_all[rows], y_all[rows], u_all[columns]
        v = jax.nn.one_hot(v_all[columns], classes_t, dtype=z.dtype)
        mapped = z @ params.pair.matrix.T + params.pair.shift[None]
        b = jax.nn.softmax(params.mixing, axis=0)
        cost = euclidean_cost(mapped, u) + LABEL_COST * euclidean_cost(b.T[y], v)
        first, second = optax.assignment.hungarian_algorithm(lax.stop_gradient(cost))
        plan = jnp.zeros(BATCH, first.dtype).at[first].set(second)
        value, gradient = jax.value_and_grad(_objective)(
            params, plan, z, y, u, v, class_loss, p_t
        )
        with jax.numpy_dtype_promotion("standard"):
            update, state = optimiser.update(gradient, state, params)
        return (optax.apply_updates(params, update), state), value

    (params, _), values = lax.scan(
        step, (start, optimiser.init(start)), jax.random.split(key, steps)
    )
    return params, values


def published_lipschitz(
    pair: PublishedPair, head: SoftmaxHead, features: np.ndarray, log_b: np.ndarray
) -> float:
    """The paper's constant: the largest gradient norm on samples, with respect to
    `A^-1 x`. Not certified.
    """
    log_h = jax.nn.log_softmax(head.logits(pair.inverse(features)))
    h = jnp.exp(log_h)
    worst = jnp.zeros(())
    for row in log_b:
        posterior = jax.nn.softmax(log_h + row[None], axis=1)
        gradient = (h - posterior) @ head.weight
        worst = jnp.maximum(worst, jnp.max(jnp.linalg.norm(gradient, axis=1)))
    return float(worst)


def learn_published(
    source: Samples,
    target: Samples,
    head: SoftmaxHead,
    prior_s: np.ndarray,
    prior_t: np.ndarray,
    *,
    refit: bool,
    steps: int,
    learn: str,
    key: Array,
    passes: int = HEAD_PASSES,
) -> tuple[Transforms, SoftmaxHead, dict[str, Any], str]:
    """FixedAll, LearnedA or LearnedAll (`learn` = "none", "map", "all") on learning
    parts.

    Args:
      source, target: standardised samples; masks mark padding.
      head: retrained with the gradient penalty when `refit`, used as it is otherwise.
      prior_s, prior_t: `(K_S,)` and `(K_T,)` class shares.

    Returns:
      Transformations with J rescaled to `p_T` (the theorem needs `B D = p_T`, the
      penalty only approaches it), the head, what was recorded, and why it stopped.
    """
    key_head, key_label, key_steps = jax.random.split(key, 3)
    if refit:
        head = penalised_head(source, head, key_head, passes=passes)
    classes_s, classes_t = len(prior_s), len(prior_t)
    with jax.enable_x64(True):

        def wide(v):
            return jnp.asarray(np.asarray(v), jnp.float64)

        head = SoftmaxHead(wide(head.weight), wide(head.bias))
        keep_s, keep_t = np.flatnonzero(source.mask), np.flatnonzero(target.mask)
        # Random labels: as many source classes as the target has, one each; shared when
        # there are fewer.
        order = np.asarray(jax.random.permutation(key_label, classes_s))
        order = order[prior_s[order] > 0]
        source_of = order[np.arange(classes_t) % len(order)]
        hit = np.zeros((classes_t, classes_s))
        hit[np.arange(classes_t), source_of] = 1
        chosen = hit.sum(0) > 0
        rows = keep_s[chosen[np.asarray(source.labels)[keep_s]]]
        z, y = (
            wide(np.asarray(source.features)[rows]),
            jnp.asarray(np.asarray(source.labels)[rows]),
        )
        u, v = (
            wide(np.asarray(target.features)[keep_t]),
            jnp.asarray(np.asarray(target.labels)[keep_t]),
        )
        class_loss, _ = class_mean(
            own_losses(head, z, y, jnp.asarray(chosen)),
            y,
            jnp.ones(len(y), bool),
            classes_s,
        )
        # Permuted labels as logits: sharp enough to mean the permutation, soft enough
        # for gradients to move.
        mixing = jnp.where(hit > 0, 8.0, 0.0) + jnp.where(
            chosen, 0.0, jnp.log(prior_t)[:, None]
        )
        prior = jnp.where(chosen, jnp.log(jnp.maximum(prior_s, 1e-12)), -1e3)
        eye = jnp.eye(z.shape[1], dtype=z.dtype)
        start = Learnable(
            PublishedPair(eye, eye, jnp.zeros(z.shape[1], z.dtype)), mixing, prior
        )
        params, values = start, jnp.zeros(0)
        if learn != "none" and steps > 0:
            params, values = _descend(
                start,
                (z, y),
                (u, v),
                class_loss,
                wide(prior_t),
                key_steps,
                steps=steps,
                learn=learn,
            )
        if learn == "all":
            b, d = jax.nn.softmax(params.mixing, axis=0), jax.nn.softmax(params.prior)
            joint = jnp.where(chosen, b * d[None], 0.0)
        else:
            # The permutation itself; D follows from it.
            joint = jnp.asarray(hit / hit.sum(1, keepdims=True)) * prior_t[:, None]
        gap = jnp.sum(joint, axis=1) - prior_t
        joint = joint * (prior_t / jnp.maximum(jnp.sum(joint, axis=1), 1e-300))[:, None]
        log_joint = np.asarray(
            jnp.where(joint > 0, jnp.log(jnp.where(joint > 0, joint, 1.0)), -jnp.inf)
        )
        log_d = np.log(np.maximum(np.exp(log_joint).sum(0), 1e-300))
        tau = published_lipschitz(params.pair, head, np.asarray(u), log_joint - log_d)

        def numpy(tree):
            return jax.tree.map(np.asarray, tree)

        info = {
            "info_objective": np.asarray(values),
            "published_lipschitz_constant": tau,
            "prior_gap": float(jnp.linalg.norm(gap)),
            "inverse_penalty": float(params.pair.penalty()),
            "assignment": source_of,
        }
        stopped = (
            f"the published schedule ended after {len(values)} steps (no early stop)"
        )
        return Transforms(log_joint, numpy(params.pair)), numpy(head), info, stopped
