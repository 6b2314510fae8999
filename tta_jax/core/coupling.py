"""The label coupling `J (K_T, K_S)` and its views: class prior D, label mixing B,
conditional entropy.

Everything works on `log J`, so that `B` is column-stochastic and `B D = p_T` to
rounding however small the entries are, and every value and gradient is finite where
entries are exactly zero (docs/theory.md, section 3.1).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float, Int

from tta_jax._internal.typing import Array


def safe_logsumexp(x: Float[Array, "rows columns"], axis: int) -> Float[Array, " left"]:
    """`logsumexp` whose value is -inf and whose gradient is 0 where all of `axis` is
    -inf.
    """
    dead = jnp.all(x == -jnp.inf, axis=axis, keepdims=True)
    total = jax.nn.logsumexp(jnp.where(dead, 0.0, x), axis=axis)
    return jnp.where(jnp.squeeze(dead, axis), -jnp.inf, total)


def log_coupling(
    theta: Float[Array, "K_T K_S"],
    log_prior: Float[Array, " K_T"],
    present: Bool[Array, " K_S"] | None = None,
) -> Float[Array, "K_T K_S"]:
    """`log J_tk = log p_T(t) + log_softmax(theta_t)_k`, `(K_T, K_S)`.

    Args:
      theta: `(K_T, K_S)` logits; -inf forbids a pair.
      log_prior: `(K_T,)` log of the target class prior; -inf for an absent class.
      present: `(K_S,)` bool; a source class without samples gets no mass.
    """
    if present is not None:
        theta = jnp.where(present, theta, -jnp.inf)
    rows = theta - safe_logsumexp(theta, axis=1)[:, None]
    rows = jnp.where(theta == -jnp.inf, -jnp.inf, rows)
    return jnp.where(
        (log_prior == -jnp.inf)[:, None], -jnp.inf, rows + log_prior[:, None]
    )


def log_source_prior(log_joint: Float[Array, "K_T K_S"]) -> Float[Array, " K_S"]:
    """`log D_k = LSE_t log J_tk`, `(K_S,)`; -inf for a class that is not used."""
    return safe_logsumexp(log_joint, axis=0)


def log_target_prior(log_joint: Float[Array, "K_T K_S"]) -> Float[Array, " K_T"]:
    """`log p_T(t) = LSE_k log J_tk`, `(K_T,)`."""
    return safe_logsumexp(log_joint, axis=1)


def log_mixing(log_joint: Float[Array, "K_T K_S"]) -> Float[Array, "K_T K_S"]:
    """`log B = log J - log D`, `(K_T, K_S)`; -inf in the columns of classes that are
    not used.
    """
    log_d = log_source_prior(log_joint)
    used = log_joint > -jnp.inf
    return jnp.where(
        used, log_joint - jnp.where(log_d > -jnp.inf, log_d, 0.0)[None], -jnp.inf
    )


def log_floored_mixing(
    log_joint: Float[Array, "K_T K_S"], floor: Float[Array, ""] | float
) -> Float[Array, "K_T K_S"]:
    """`log B_f` of `B_f = (1 - f) B + f p_T 1'`, `(K_T, K_S)`.

    `B_f h = (1 - f) B h + f p_T`, since the probabilities h sum to 1: mixing the target
    prior into a classifier mixes it into every column of B (docs/theory.md, section
    5.3).

    Args:
      log_joint: `(K_T, K_S)`, `log J`.
      floor: f, at least 0 and below 1; at exactly 0 its derivative counts as 0.
    """
    log_b, log_p = log_mixing(log_joint), log_target_prior(log_joint)
    floor = jnp.asarray(floor, log_b.dtype)
    there = floor > 0
    some = jnp.where(there, floor, 0.5)  # no logarithm of 0, in gradients neither
    mixed = jnp.logaddexp(jnp.log1p(-some) + log_b, jnp.log(some) + log_p[:, None])
    return jnp.where(there, mixed, log_b)


def label_mixing(log_joint: Float[Array, "K_T K_S"]) -> Float[Array, "K_T K_S"]:
    """`B (K_T, K_S)`, every column on the simplex; the target prior for classes that
    are not used (`D_k = 0`).
    """
    unused = log_source_prior(log_joint) == -jnp.inf
    prior = jnp.exp(log_target_prior(log_joint))
    return jnp.where(unused, prior[:, None], jnp.exp(log_mixing(log_joint)))


def label_mismatch(
    log_joint: Float[Array, "K_T K_S"], log_b: Float[Array, "K_T K_S"] | None = None
) -> Float[Array, ""]:
    """`H(Y''|Y') = -sum_tk J_tk log B_tk` in nats, `0 log 0 = 0` in value and gradient
    [P, theorem].

    With the `log_b` of a classifier learned for another J it is the cross-entropy that
    takes H's place in the theorem.
    """
    log_b = log_mixing(log_joint) if log_b is None else log_b
    used = log_joint > -jnp.inf
    return 0.0 - jnp.sum(
        jnp.where(used, jnp.exp(log_joint) * jnp.where(used, log_b, 0.0), 0.0)
    )


def entropy(log_p: Float[Array, " K"]) -> Float[Array, ""]:
    """`-sum p log p` in nats."""
    used = log_p > -jnp.inf
    return 0.0 - jnp.sum(
        jnp.where(used, jnp.exp(log_p) * jnp.where(used, log_p, 0.0), 0.0)
    )


def entropy_of(share: Float[Array, " K"]) -> Float[Array, ""]:
    """`-sum p log p` in nats, of shares in place of their logarithms."""
    log_share = jnp.log(jnp.where(share > 0, share, 1.0))
    return entropy(jnp.where(share > 0, log_share, -jnp.inf))


def assign(
    cost: Float[Array, "K_T K_S"],
    present: Bool[Array, " K_S"],
    wanted: Bool[Array, " K_T"] | None = None,
) -> Int[Array, " K_T"]:
    """One source class for each target class at least total cost, `(K_T,)` int.

    One to one where `K_S >= K_T` (Hungarian); otherwise every source class is used and
    the target classes that are left over take their cheapest one, which they share.

    Args:
      cost: `(K_T, K_S)`, finite.
      present: `(K_S,)` bool; classes without samples are not assigned while others
        remain.
      wanted: `(K_T,)` bool; rows that are padding take no source class away from the
        others, whatever they get.
    """
    targets, sources = cost.shape
    # Larger than any sum of real costs, so an absent class is taken only when nothing
    # else is left.
    far = (targets + sources) * (jnp.max(cost) - jnp.min(cost) + 1.0) + jnp.max(cost)
    cost = jnp.where(
        present if wanted is None else present[None] & wanted[:, None], cost, far
    )
    cheapest = jnp.argmin(cost, axis=1).astype(jnp.int32)
    found = optax.assignment.hungarian_algorithm(cost)
    rows, columns = (v.astype(jnp.int32) for v in found)
    return cheapest.at[rows].set(jnp.where(present[columns], columns, cheapest[rows]))


def assignment_logits(
    source_of: Int[Array, " K_T"], num_sources: int, sharpness: float | None = None
) -> Float[Array, "K_T K_S"]:
    """Logits `theta (K_T, K_S)` of an assignment: exact (-inf elsewhere), or finite
    with that gap to learn from.
    """
    hit = source_of[:, None] == jnp.arange(num_sources, dtype=source_of.dtype)[None]
    return jnp.where(hit, 0.0, -jnp.inf if sharpness is None else -sharpness)
