"""One equation of docs/theory.md per function, pure; losses in nats.

Masses stand in place of probabilities.

Joint masses: a source item i carries `q^t_i = J_{t,y_i} / n_{y_i}` for target class t,
a target item j of class t carries `r_j = p_T(t) / m_t`. For every t both sum to
`p_T(t)`, and the terms below are sums over t of per-class integrals, so nothing is
divided by a probability that may be zero.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int, Real

from tta_jax._internal.typing import Array
from tta_jax.core.coupling import log_source_prior, safe_logsumexp

# columns handled per pass of the pairwise costs: enough to keep the accumulator in
# cache
_CHUNK = 16


def log_head(
    logits: Float[Array, "n K_S"], active: Bool[Array, " K_S"]
) -> Float[Array, "n K_S"]:
    """`log h`, log-softmax over the active classes, -inf elsewhere, `(n, K_S)`.

    Dropping unused source classes (`D_k = 0`) from the head keeps every statement and
    stops them from taking probability.
    """
    kept = jnp.where(active, logits, -jnp.inf)
    return jnp.where(active, logits - safe_logsumexp(kept, axis=1)[:, None], -jnp.inf)


def transformed_log_proba(
    log_h: Float[Array, "n K_S"], log_b: Float[Array, "K_T K_S"]
) -> Float[Array, "n K_T"]:
    """`log (B h)`, `(n, K_T)`: the classifier `h'' = B h` in the log domain [P]."""
    return lax.map(lambda row: safe_logsumexp(log_h + row[None], axis=1), log_b).T


def loss_of_class(
    log_h: Float[Array, "n K_S"],
    log_b_row: Float[Array, " K_S"] | Float[Array, "n K_S"],
) -> Float[Array, " n"]:
    """`l(B h, t) = -log sum_k B_tk h_k` for one target class t, `(n,)`; +inf where t
    has no probability.

    Args:
      log_h: `(n, K_S)`.
      log_b_row: `(K_S,)` or `(n, K_S)`, the row of `log B` for t.
    """
    return -safe_logsumexp(log_h + jnp.atleast_2d(log_b_row), axis=1)


def mixed_loss(
    logits: Float[Array, "n K_S"],
    log_b_row: Float[Array, " K_S"] | Float[Array, "n K_S"],
    active: Bool[Array, " K_S"],
) -> Float[Array, " n"]:
    """`loss_of_class` from logits `(n, K_S)` by two log-sums alone: for values only,
    its gradient may be NaN where it is inf.
    """
    kept = jnp.where(active, logits, -jnp.inf)
    return jax.nn.logsumexp(kept, axis=1) - jax.nn.logsumexp(
        kept + jnp.atleast_2d(log_b_row), axis=1
    )


def floored_loss(
    losses: Float[Array, "*n"],
    log_p: Float[Array, "*n"],
    floor: Float[Array, ""],
) -> Float[Array, "*n"]:
    """`-log((1 - f) e^-loss + f p)`: losses of a classifier into which a share f of the
    target prior is mixed; at most `-log(f p)`.

    Args:
      losses: of the classifier without it, nats; may be inf.
      log_p: `log p_T` of the items' classes.
      floor: f, above 0 and below 1.
    """
    return -jnp.logaddexp(jnp.log1p(-floor) - losses, jnp.log(floor) + log_p)


def class_mean(
    values: Float[Array, " n"],
    labels: Int[Array, " n"],
    mask: Bool[Array, " n"],
    num_classes: int,
) -> tuple[Float[Array, " K"], Float[Array, " K"]]:
    """Mean of `values (n,)` over each class and the number of items, `(K,)` each; 0 for
    an empty class.
    """
    counts = jax.ops.segment_sum(mask.astype(values.dtype), labels, num_classes)
    sums = jax.ops.segment_sum(jnp.where(mask, values, 0.0), labels, num_classes)
    return sums / jnp.maximum(counts, 1), counts


def own_class_losses(
    logits: Float[Array, "n K_S"], labels: Int[Array, " n"], active: Bool[Array, " K_S"]
) -> Float[Array, " n"]:
    """`l(h(z_i), y_i)`, `(n,)`; 0 for an item of a class that is not active, whose loss
    counts for nothing.
    """
    own = -jnp.take_along_axis(log_head(logits, active), labels[:, None], axis=1)[:, 0]
    return jnp.where(active[labels], own, 0.0)


def reweighted_source_loss(
    log_joint: Float[Array, "K_T K_S"], class_losses: Float[Array, " K_S"]
) -> Float[Array, ""]:
    """`L_rw(D) = sum_k D_k mean_{i: y_i = k} l(h(z_i), k)` from the classes' mean
    losses `(K_S,)` [P].
    """
    log_d = log_source_prior(log_joint)
    used = log_d > -jnp.inf
    return jnp.sum(
        jnp.where(used, jnp.exp(log_d) * jnp.where(used, class_losses, 0.0), 0.0)
    )


def source_mass(
    log_joint_row: Float[Array, " K_S"],
    labels: Int[Array, " n"],
    mask: Bool[Array, " n"],
    counts: Real[Array, " K_S"],
) -> Float[Array, " n"]:
    """`q^t_i = J_{t,y_i} / n_{y_i}` for one target class t, `(n_S,)`."""
    return jnp.where(
        mask,
        (jnp.exp(log_joint_row) / jnp.maximum(counts, 1).astype(log_joint_row.dtype))[
            labels
        ],
        0.0,
    )


def expected_loss(
    losses: Float[Array, " n"], mass: Float[Array, " n"]
) -> Float[Array, ""]:
    """`sum_i mass_i loss_i`, ignoring items without mass (their loss may be
    infinite).
    """
    return jnp.sum(jnp.where(mass > 0, mass * jnp.where(mass > 0, losses, 0.0), 0.0))


def quantile_coupling(
    source_losses: Float[Array, " n"],
    q: Float[Array, " n"],
    target_losses: Float[Array, " m"],
    r: Float[Array, " m"],
    classes: tuple[Int[Array, " n"], Int[Array, " m"]] | None = None,
) -> Float[Array, ""]:
    """`p int_0^1 max(F^-1, G^-1) dq`, the `tight` bound of one class, or the sum over
    all [+].

    F and G are the distributions of the source losses under masses `q` and of the
    target losses under `r` (equal totals p). The maximum of the two quantile functions
    has the distribution function `min(F, G)`, so the integral is a sum over the merged,
    sorted losses. Exact, and right for infinite losses.

    Args:
      source_losses, q: of the source items.
      target_losses, r: of the target items.
      classes: classes of both tasks' items, which have the same mass on both sides;
        None for one class. Behind one another, their running sums meet at every end, so
        one pass does for all.
    """
    losses = jnp.concatenate([source_losses, target_losses])
    # Items without mass must not decide the order of infinities or spread NaN.
    has = jnp.concatenate([q, r]) > 0
    losses = jnp.where(has, losses, 0.0)
    keys = lax.stop_gradient(losses)
    if classes is None:
        order = jnp.argsort(keys)
    else:
        order = jnp.lexsort((keys, jnp.concatenate(classes)))
    zeros_q, zeros_r = jnp.zeros_like(q), jnp.zeros_like(r)
    below_f = jnp.cumsum(jnp.concatenate([q, zeros_r])[order])
    below_g = jnp.cumsum(jnp.concatenate([zeros_q, r])[order])
    # Rounding must not leave a sliver of mass unplaced: both end at the same total.
    total = jnp.maximum(below_f[-1], below_g[-1])
    lowest = jnp.minimum(below_f, below_g).at[-1].set(total)
    mass = jnp.diff(lowest, prepend=0.0)
    # With equal losses the order within the tie is free, so no mass is negative.
    return expected_loss(losses[order], mass)


def oscillation_cost(
    source_logits: Float[Array, "n K_S"],
    target_logits: Float[Array, "m K_S"],
    active: Bool[Array, " K_S"],
) -> Float[Array, "n m"]:
    """`osc(s_i - s_j) = max_k - min_k` over the active classes, by direct differences,
    `(n, m)` [+].
    """
    pair = (_fill(source_logits, active), _fill(target_logits, active))
    return _range(*pair, *pair)


def directed_cost(
    source_logits: Float[Array, "n K_S"],
    target_logits: Float[Array, "m K_S"],
    drawn: Bool[Array, " K_S"],
    active: Bool[Array, " K_S"],
) -> Float[Array, "n m"]:
    """`delta_t(v) = max_k v_k - min_{k: B_tk > 0} v_k` of `v = s_j - s_i`, `(n, m)`
    [+].

    It bounds by how much the loss for target class t rises from source item i to
    target item j (docs/theory.md, section 5.1); what falls costs nothing.

    Args:
      source_logits, target_logits: `(n, K_S)`, `(m, K_S)`.
      drawn: `(K_S,)` bool, where B has mass in the row of t, without any floor; where
        it has none, all active classes count.
      active: `(K_S,)` bool.
    """
    drawn = active & drawn
    drawn = jnp.where(jnp.any(drawn), drawn, active)
    return _range(
        _fill(source_logits, drawn),
        _fill(target_logits, drawn),
        _fill(source_logits, active),
        _fill(target_logits, active),
    )


def _fill(logits: Array, classes: Array) -> Array:
    """Logits whose other classes repeat one of `classes`, so that no maximum over all
    of them sees the others.
    """
    return jnp.where(classes, logits, logits[:, jnp.argmax(classes)][:, None])


@jax.custom_jvp
def _range(high_x: Array, high_y: Array, low_x: Array, low_y: Array) -> Array:
    """`max_k (high_x - high_y)_k - min_k (low_x - low_y)_k` of every two rows."""
    high = _extreme(high_x, high_y, jnp.maximum)
    return high - _extreme(low_x, low_y, jnp.minimum)


def _extreme(x: Array, y: Array, larger: Callable) -> Array:
    def step(best, columns):
        for a, b in zip(*columns, strict=True):
            best = larger(best, a[:, None] - b[None])
        return best, None

    first = x[:, 0][:, None] - y[:, 0][None]
    return lax.scan(step, first, _column_chunks(x, y, repeat=True))[0]


@_range.defjvp
def _range_jvp(primals, tangents):
    high_x, high_y, low_x, low_y = primals
    high = _extreme(high_x, high_y, jnp.maximum)
    low = _extreme(low_x, low_y, jnp.minimum)
    rise = _slope(high, primals[:2], tangents[:2])
    fall = _slope(low, primals[2:], tangents[2:])
    return high - low, rise - fall


def _slope(best: Array, rows: tuple[Array, ...], moves: tuple[Array, ...]) -> Array:
    """How the extreme `best` of the differences moves; ties (measure zero, but exact
    for duplicates) share it evenly.
    """
    (x, y), (dx, dy) = rows, moves

    def add(carry, columns):
        count, total = carry
        a, b, da, db = columns
        tie = (a[:, None] - b[None] == best).astype(x.dtype)
        return (count + tie, total + tie * (da[:, None] - db[None])), None

    zero = jnp.zeros_like(best)
    (count, total), _ = lax.scan(add, (zero, zero), (x.T, y.T, dx.T, dy.T))
    return total / count


@jax.custom_jvp
def euclidean_cost(
    x: Float[Array, "n d"], y: Float[Array, "m d"]
) -> Float[Array, "n m"]:
    """`||x_i - y_j||_2` by direct differences, `(n, m)`; no cancellation between near
    duplicates.
    """

    def step(total, columns):
        for a, b in zip(*columns, strict=True):
            total = total + (a[:, None] - b[None]) ** 2
        return total, None

    start = jnp.zeros((x.shape[0], y.shape[0]), jnp.result_type(x, y))
    return jnp.sqrt(lax.scan(step, start, _column_chunks(x, y, repeat=False))[0])


@euclidean_cost.defjvp
def _euclidean_jvp(primals, tangents):
    (x, y), (dx, dy) = primals, tangents
    distance = euclidean_cost(x, y)
    # Centred, so that features far from the origin do not cancel.
    centre = jnp.mean(y, axis=0)
    x, y = x - centre[None], y - centre[None]
    inner = jnp.sum(x * dx, 1)[:, None] - dx @ y.T - x @ dy.T + jnp.sum(y * dy, 1)[None]
    # The subgradient 0 between coinciding points.
    return distance, jnp.where(
        distance > 0, inner / jnp.where(distance > 0, distance, 1.0), 0.0
    )


def _column_chunks(x: Array, y: Array, *, repeat: bool) -> tuple[Array, Array]:
    """Columns of both arrays as `(chunks, 16, n)`; padded with zeros, or with copies of
    the first column.
    """
    missing = -x.shape[1] % _CHUNK if x.shape[1] > _CHUNK else 0

    def cut(a):
        pad = (
            jnp.repeat(a[:, :1], missing, axis=1)
            if repeat
            else jnp.zeros((a.shape[0], missing), a.dtype)
        )
        a = jnp.concatenate([a, pad], axis=1)
        return a.T.reshape(-1, min(_CHUNK, a.shape[1]), a.shape[0])

    return cut(x), cut(y)


def logit_residual(
    source_logits: Float[Array, "n K_S"],
    mapped_logits: Float[Array, "n K_S"],
    active: Bool[Array, " K_S"],
) -> Float[Array, " n"]:
    """`osc` of what separates `W z + c` from `M phi(z) + m`, `(n,)`: rounding, for a
    map whose logits are exact.

    Added to the Lipschitz rungs it keeps them certified:
    `osc(s_i - s(x)) <= residual_i + tau ||phi(z_i) - x||`.
    """
    gap = source_logits - mapped_logits
    return jnp.max(jnp.where(active, gap, -jnp.inf), 1) - jnp.min(
        jnp.where(active, gap, jnp.inf), 1
    )
