"""The chain of bounds once more, in plain NumPy and POT, from the spec and without a
line of the library.
"""

from typing import Any

import numpy as np
import ot
from scipy.special import logsumexp


def log_softmax(s):
    s = s - s.max(1, keepdims=True)
    return s - np.log(np.exp(s).sum(1, keepdims=True))


def quantile_max(f_values, f_mass, g_values, g_mass):
    """`int max(F^-1, G^-1)` by walking both quantile functions step by step."""
    f_order, g_order = np.argsort(f_values), np.argsort(g_values)
    f, fm = list(f_values[f_order]), list(f_mass[f_order])
    g, gm = list(g_values[g_order]), list(g_mass[g_order])
    i = j = 0
    total = 0.0
    while i < len(f) and j < len(g):
        step = min(fm[i], gm[j])
        if step > 0:
            total += step * max(f[i], g[j])
        fm[i] -= step
        gm[j] -= step
        if fm[i] <= gm[j]:
            i += 1
        else:
            j += 1
    return total


def exact_transport(cost, a, b):
    keep_a, keep_b = a > 0, b > 0
    a, b, cost = a[keep_a], b[keep_b], cost[np.ix_(keep_a, keep_b)]
    total = a.sum()
    return total * ot.emd2(
        a / a.sum(), b / b.sum(), np.ascontiguousarray(cost), numItermax=2_000_000
    )


def chain(joint, weight, bias, target_logits, mapped, tau_rows, z, y, u, v, floor=0.0):
    """Every figure of the spec, exactly.

    Args:
      joint: J (K_T, K_S) whose row sums are the class weights of the target loss.
      weight, bias: the source head.
      target_logits: `W phi^-1(u) + c` (n_T, K_S).
      mapped: `phi(z)` or None.
      tau_rows: rows of `W A^-1`, or None.
      floor: share of the target's class prior in the classifier.
    """
    k_t, k_s = joint.shape
    d = joint.sum(0)
    used = d > 0
    b = np.where(used, joint / np.where(used, d, 1), 0)
    counts = np.bincount(y, minlength=k_s)
    sizes = np.bincount(v, minlength=k_t)
    log_h = np.full((len(z), k_s), -np.inf)
    log_h[:, used] = log_softmax(z @ weight[used].T + bias[used])
    log_ht = np.full((len(u), k_s), -np.inf)
    log_ht[:, used] = log_softmax(target_logits[:, used])
    # Weighted log-sum-exp: probabilities of 1e-200 still have a finite loss.
    loss, loss_t = (
        -np.asarray(logsumexp(x[:, None], b=b[None], axis=2)) for x in (log_h, log_ht)
    )
    if floor:
        prior = joint.sum(1)
        loss, loss_t = (
            -np.log((1 - floor) * np.exp(-v) + floor * prior) for v in (loss, loss_t)
        )
        b = (1 - floor) * b + floor * prior[:, None]
    out: dict[str, Any] = dict.fromkeys(
        [
            "target_loss",
            "transformed_source_loss",
            "tight",
            "directed",
            "oscillation",
            "distance",
        ],
        0.0,
    )
    s, st = z @ weight.T + bias, target_logits
    for t in range(k_t):
        p = joint[t].sum()
        if p <= 0:
            continue
        mass = joint[t, y] / np.maximum(counts[y], 1)
        rows, columns = np.flatnonzero(mass > 0), np.flatnonzero(v == t)
        q, r = mass[rows], np.full(len(columns), p / sizes[t])
        out["target_loss"] += r @ loss_t[columns, t]
        out["transformed_source_loss"] += q @ loss[rows, t]
        out["tight"] += quantile_max(loss[rows, t], q, loss_t[columns, t], r)
        gap = s[rows][:, None, used] - st[columns][None][:, :, used]
        out["oscillation"] += exact_transport(gap.max(2) - gap.min(2), q, r)
        drawn = joint[t, used] > 0
        rise = (-gap).max(2) - (-gap)[:, :, drawn].min(2)
        out["directed"] += exact_transport(rise, q, r)
        if mapped is not None:
            distance = np.sqrt(((mapped[rows][:, None] - u[columns][None]) ** 2).sum(2))
            out["distance"] += exact_transport(distance, q, r)
    own = -log_h[np.arange(len(z)), y]
    out["reweighted_source_loss"] = sum(
        d[k] * own[y == k].mean() for k in range(k_s) if d[k] > 0
    )
    positive = joint > 0
    out["label_mismatch"] = -(joint[positive] * np.log(b[positive])).sum()
    if tau_rows is not None:
        rows = tau_rows[used]
        out["tau"] = max(np.linalg.norm(a - c) for a in rows for c in rows)
    return out


def affine_of(family, leaves):
    """`(A, b)` of an affine family from its formula in the spec; `leaves` are its
    arrays by name.
    """
    p = {
        name: np.asarray(v, np.float64)
        for name, v in leaves.items()
        if v is not None and name != "reason"
    }
    shift = p.get("shift", 0.0)
    if family == "identity":
        return None, 0.0
    if family == "translation":
        return np.eye(len(p["shift"])), shift
    if family == "diagonal":
        return np.diag(np.exp(p["log_scale"])), shift
    if family == "low_rank":
        return np.diag(np.exp(p["log_scale"])) + p["left"] @ p["right"].T, shift
    if family == "rotation":
        skew = (p["generator"] - p["generator"].T) / 2
        eye = np.eye(len(skew))
        flip = eye.copy()
        flip[0, 0] = p["flip"]
        return np.linalg.inv(eye - skew) @ (eye + skew) @ flip, shift
    if family == "published_pair":
        return np.linalg.inv(p["inverse_matrix"]), shift  # A^-1 := Abar
    return p["matrix"], shift


def coupling_layers_inverse(layers, x):
    """`phi^-1` of affine coupling layers, one layer after the other from the last to
    the first.
    """
    x = np.array(x, np.float64)
    for index in reversed(range(len(layers))):
        first, last = (layers[index]["layers"][i] for i in (0, 2))
        kept, moved = slice(index % 2, None, 2), slice(1 - index % 2, None, 2)
        hidden = np.tanh(
            x[:, kept] @ np.asarray(first["kernel"], np.float64)
            + np.asarray(first["bias"], np.float64)
        )
        out = hidden @ np.asarray(last["kernel"], np.float64) + np.asarray(
            last["bias"], np.float64
        )
        log_scale, shift = np.split(out, 2, axis=1)
        x[:, moved] = (x[:, moved] - shift) / np.exp(2 * np.tanh(log_scale))
    return x


def chain_from_map(joint, weight, bias, family, leaves, z, y, u, v, floor=0.0):
    """`chain` with the map's part computed here as well: nothing but parameters comes
    from the library.
    """
    if family == "coupling_layers":
        logits = coupling_layers_inverse(leaves["layers"], u) @ weight.T + bias
        return chain(joint, weight, bias, logits, None, None, z, y, u, v, floor)
    if family == "logit_affine":
        return chain(
            joint,
            weight,
            bias,
            u @ leaves["weight"].T + leaves["bias"],
            None,
            None,
            z,
            y,
            u,
            v,
            floor,
        )
    matrix, shift = affine_of(family, leaves)
    matrix = np.eye(z.shape[1]) if matrix is None else matrix
    pulled = np.linalg.solve(matrix.T, weight.T).T
    logits = (u - shift) @ pulled.T + bias
    return chain(
        joint, weight, bias, logits, z @ matrix.T + shift, pulled, z, y, u, v, floor
    )
