"""The first stage against definitions in NumPy: assignment by brute force, scale by a
scalar minimiser, figures by the oracle.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax

from tests.reference import numpy_chain as oracle
from tests.typed import on_host
from tta_jax._internal.padding import geometric_bucket
from tta_jax.fitting.assignment import SourceFit, match_classes
from tta_jax.fitting.closed_form import RIDGES
from tta_jax.fitting.floor import FLOORS
from tta_jax.fitting.relatedness import Branches
from tta_jax.scans.profiles import SourceProfile, TargetProfile
from tta_jax.scans.screening import SCALES, screen_pair


def screen(source, target, keep):
    classes = match_classes(source.fit, target.means, target.log_prior)
    return screen_pair(source, target, classes, keep)


_screen = jax.jit(screen)


def RUN(*x):
    return jax.device_get(_screen(*jax.tree.map(jnp.asarray, x)))


# K_S, K_T, how many source classes are present, whether the head is ours, padded sizes
# of both
CASES = [
    (3, 3, 3, True, 3, 3),
    (5, 3, 5, True, 6, 4),
    (3, 5, 3, True, 4, 6),
    (4, 4, 3, False, 4, 5),
    (6, 2, 6, True, 8, 2),
]


def profiles(case, seed):
    """Random profiles with padding, and the same numbers without."""
    k_s, k_t, present, ours, pad_s, pad_t = case
    rng = np.random.default_rng(seed)
    d, n, m, capacity, ridges = 4, 23, 11, 6, 3
    weight, bias = rng.normal(size=(pad_s, d)), rng.normal(size=pad_s)
    order = np.r_[rng.permutation(k_s), np.arange(k_s, pad_s)]
    gone = order[present:k_s]
    prior_s = rng.dirichlet(np.ones(k_s) * 5)
    prior_s[gone] = 0
    counts = np.where(
        np.isin(np.arange(pad_s), gone) | (np.arange(pad_s) >= k_s),
        0,
        rng.integers(1, capacity + 1, pad_s),
    )
    held_logits = 2 * rng.normal(size=(pad_s, capacity, pad_s))
    with np.errstate(divide="ignore"):
        log_prior_s = np.log(
            np.pad(
                np.maximum(prior_s / prior_s.sum(), 1e-30),
                (0, pad_s - k_s),
                constant_values=1e-30,
            )
        )
    fit = on_host(
        SourceFit,
        weight=weight,
        bias=bias,
        present=np.isin(np.arange(pad_s), order[:present]),
        log_prior=log_prior_s,
        refits=np.asarray(ours),
        l2=np.asarray(0.1),
        logits=2 * rng.normal(size=(n, pad_s)),
        judged=rng.random(n) < 0.9,
    )
    labels_s = rng.choice(order[:present], n)
    source = on_host(
        SourceProfile,
        fit=fit,
        mean_logits=3 * rng.normal(size=(pad_s, pad_s)),
        held_logits=held_logits,
        held_counts=counts.astype(np.int32),
        labels=labels_s.astype(np.int32),
    )
    labels = np.r_[np.arange(k_t), rng.integers(0, k_t, n - k_t)].astype(np.int32)
    held_labels = np.r_[np.arange(k_t), rng.integers(0, k_t, m - k_t)].astype(np.int32)
    prior = np.bincount(labels, minlength=k_t) / n
    padded = np.pad(prior, (0, pad_t - k_t))

    def predictions(labels, size):
        # (ridges, size, K)
        return 0.7 * np.eye(pad_t)[labels] + 0.3 * rng.dirichlet(
            np.ones(k_t), (ridges, size)
        ) @ np.eye(k_t, pad_t)

    def placed(labels):
        size = len(labels)
        branch = np.where(rng.random(size) < 0.7, labels, rng.integers(0, k_t, size))
        certainty = rng.uniform(1 / k_t, 1, size)
        return on_host(
            Branches,
            branch.astype(np.int32),
            certainty,
            labels,
            rng.random(size) < 0.9,
        )

    learn, held = predictions(labels, n), predictions(held_labels, m)
    weights = np.where(rng.random(n) < 0.9, 1.0, 0.0)
    with np.errstate(divide="ignore"):
        log_prior = np.log(padded)
    target = on_host(
        TargetProfile,
        rng.normal(size=(pad_t, d)),
        log_prior,
        learn.transpose(2, 0, 1).reshape(pad_t, -1),
        labels,
        weights / weights.sum(),
        held.transpose(0, 2, 1),
        held_labels,
        rng.random(m) < 0.95,
        0.0,
        0.0,
        (np.nan, 0.0, 0.05)[seed % 3],
        placed(labels),
        placed(held_labels),
    )
    return source, target, rng.random(m) < 0.9


def negative_log(log_h, b):
    """`-log(B h)`, one row an item."""
    return -np.asarray(logsumexp(log_h[:, None], b=b[None], axis=2))


def expected(source, target, keep, chosen) -> dict[str, Any]:
    """Every figure for the ridge and offset that were chosen, by other means."""
    k_t = int((target.log_prior > -np.inf).sum())
    slots = np.flatnonzero(source.fit.present)
    prior = np.exp(target.log_prior[:k_t])
    cost = -np.log(
        softmax(
            target.means[:k_t] @ source.fit.weight[slots].T + source.fit.bias[slots],
            axis=1,
        )
    )
    if len(slots) >= k_t:
        ways = [np.array(p) for p in itertools.permutations(range(len(slots)), k_t)]
    else:
        # One target class for each source class at least total cost; the others take
        # their cheapest.
        cheapest = cost.argmin(1)
        ways = []
        for rows in itertools.permutations(range(k_t), len(slots)):
            way = cheapest.copy()
            way[list(rows)] = np.arange(len(slots))
            ways.append(way)
        value = [
            sum(cost[r, c] for c, r in enumerate(rows))
            for rows in itertools.permutations(range(k_t), len(slots))
        ]
        ways = [ways[int(np.argmin(value))]]
    slot_of = min(ways, key=lambda way: cost[np.arange(k_t), way].sum())
    kept = np.unique(slot_of)
    slots, slot_of = slots[kept], np.searchsorted(kept, slot_of)
    joint = np.zeros((k_t, len(slots)))
    joint[np.arange(k_t), slot_of] = prior
    d = joint.sum(0)
    shift = (
        np.log(d) - source.fit.log_prior[slots]
        if source.fit.refits
        else np.zeros(len(slots))
    )
    words = source.mean_logits[np.ix_(slots, slots)] + shift
    words = (words - words.mean(1, keepdims=True))[slot_of]
    b = joint / d
    ridges = target.held.shape[0]
    learn = target.predictions.reshape(len(target.log_prior), ridges, -1)[:k_t]
    number = int((target.weights > 0).sum())

    def own_losses(ridge, scale, offset):
        log_h = scale * np.einsum(
            "tn,tc->nc", learn[:, ridge], words
        ) + offset * np.log(d)
        log_h = log_h - logsumexp(log_h, axis=1, keepdims=True)
        loss = negative_log(log_h, b)
        return log_h, loss[np.arange(len(target.labels)), target.labels]

    def inner(ridge, scale, offset):
        log_h, own = own_losses(ridge, scale, offset)
        drawn = -log_h @ d - np.sum(
            joint[b > 0] * np.log(b[b > 0])
        )  # the item more, its classes drawn from D and B
        return target.weights @ (number * own + drawn) / (number + 1)

    least = [
        minimize_scalar(
            lambda a, r=r: inner(r, a, 0.0),
            bounds=SCALES,
            method="bounded",
            options={"xatol": 1e-9},
        )
        for r in range(ridges)
    ]
    ridge = int(np.argmin(np.abs(np.asarray(RIDGES) - chosen.ridge)))
    best = min(found.fun for found in least)
    with_prior = minimize_scalar(
        lambda a: inner(ridge, a, 1.0),
        bounds=SCALES,
        method="bounded",
        options={"xatol": 1e-9},
    )
    offset, best = float(chosen.offset), min(best, with_prior.fun)
    _, own = own_losses(ridge, float(chosen.scale), offset)
    p = prior[target.labels]
    floor = float(target.floor)
    if np.isnan(floor):
        means = [
            -target.weights @ np.log((1 - f) * np.exp(-own) + f * p) for f in FLOORS
        ]
        floor = FLOORS[int(np.argmin(means))]
    # The target prior in every column: its share is that of B h.
    b = (1 - floor) * b + floor * prior[:, None]
    mask = np.asarray(target.held_mask) & keep
    counts = np.bincount(target.held_labels[mask], minlength=k_t)
    share = (
        counts / counts.sum()
        if len(slots) == k_t
        else np.where(counts > 0, prior, 0) / prior[counts > 0].sum()
    )
    logits = chosen.scale * target.held[ridge].T[:, :k_t] @ words + offset * np.log(d)
    # Held-out source items: features are their logits, the head is the identity and its
    # bias the shift.
    z = np.concatenate(
        [source.held_logits[k, : source.held_counts[k]][:, slots] for k in slots]
    )
    y = np.repeat(np.arange(len(slots)), source.held_counts[slots])
    scaled = np.zeros_like(joint)
    scaled[np.arange(k_t), slot_of] = share
    # B stays as it was learned, whatever the class shares of the items evaluated are.
    figures = chain_with_b(
        scaled, b, z + shift, y, logits[mask], target.held_labels[mask]
    )
    return figures | {
        "floor": floor,
        "label_mismatch": -share @ np.log(b[np.arange(k_t), slot_of]),
        "inner_loss": best,
        "assigned": slots[slot_of],
        "prior_entropy": -sum(p * np.log(p) for p in share if p > 0),
    }


def chain_with_b(joint, b, s, y, target_logits, v):
    loss = negative_log(oracle.log_softmax(s), b)
    loss_t = negative_log(oracle.log_softmax(target_logits), b)
    out = dict.fromkeys(["target_loss", "tight", "transformed_source_loss"], 0.0)
    for t in range(len(joint)):
        if joint[t].sum() <= 0:
            continue
        mass = joint[t, y] / np.bincount(y, minlength=joint.shape[1])[y]
        rows, columns = np.flatnonzero(mass > 0), np.flatnonzero(v == t)
        r = np.full(len(columns), joint[t].sum() / len(columns))
        out["target_loss"] += r @ loss_t[columns, t]
        out["transformed_source_loss"] += mass[rows] @ loss[rows, t]
        out["tight"] += oracle.quantile_max(
            loss[rows, t], mass[rows], loss_t[columns, t], r
        )
    return out


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(6))
def test_figures_are_those_of_the_definitions(case, seed, x64):
    source, target, keep = profiles(case, seed)
    found = RUN(source, target, keep)
    wanted = expected(source, target, keep, found)
    k_t = len(wanted["assigned"])
    np.testing.assert_array_equal(found.assigned[:k_t], wanted["assigned"])
    # The scale is known to a twentieth, near the minimum of a flat function; ridge and
    # offset are those of least loss there.
    assert (
        wanted["inner_loss"] - 1e-6 <= found.inner_loss <= 1.01 * wanted["inner_loss"]
    )
    for name in (
        "floor",
        "target_loss",
        "tight",
        "transformed_source_loss",
        "label_mismatch",
        "prior_entropy",
    ):
        np.testing.assert_allclose(
            getattr(found, name), wanted[name], rtol=1e-9, atol=1e-12
        )
    most = found.reweighted_source_loss + found.label_mismatch
    assert found.transformed_source_loss <= most + 1e-12
    assert found.target_loss <= found.tight + 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_padding_changes_nothing(case, x64):
    source, target, keep = profiles(case, 7)

    def wide(v, axes, size):
        return np.pad(v, [(0, size if k in axes else 0) for k in range(np.ndim(v))])

    more = on_host(
        SourceProfile,
        fit=source.fit._replace(
            weight=wide(source.fit.weight, (0,), 2),
            bias=wide(source.fit.bias, (0,), 2),
            present=wide(source.fit.present, (0,), 2),
            log_prior=np.pad(source.fit.log_prior, (0, 2), constant_values=-69.0),
            logits=wide(source.fit.logits, (1,), 2),
        ),
        mean_logits=wide(source.mean_logits, (0, 1), 2),
        held_logits=np.pad(source.held_logits, [(0, 2), (0, 3), (0, 2)]),
        held_counts=wide(source.held_counts, (0,), 2),
        labels=source.labels,
    )
    ridges = target.held.shape[0]
    rows = target.predictions.reshape(len(target.log_prior), ridges, -1)
    big = on_host(
        TargetProfile,
        wide(target.means, (0,), 3),
        np.pad(target.log_prior, (0, 3), constant_values=-np.inf),
        np.pad(rows, [(0, 3), (0, 0), (0, 5)]).reshape(len(target.log_prior) + 3, -1),
        wide(target.labels, (0,), 5),
        wide(target.weights, (0,), 5),
        np.pad(target.held, [(0, 0), (0, 3), (0, 4)]),
        wide(target.held_labels, (0,), 4),
        wide(target.held_mask, (0,), 4),
        0.0,
        0.0,
        target.floor,
        jax.tree.map(lambda v: wide(v, (0,), 5), target.branches),
        jax.tree.map(lambda v: wide(v, (0,), 4), target.held_branches),
    )
    plain, padded = (
        RUN(source, target, keep),
        RUN(more, big, np.pad(keep, (0, 4), constant_values=True)),
    )
    for name in set(plain._fields) - {"assigned", "share"}:
        np.testing.assert_allclose(
            getattr(padded, name), getattr(plain, name), rtol=1e-10, err_msg=name
        )
    there = target.log_prior > -np.inf
    np.testing.assert_array_equal(
        padded.assigned[: len(there)][there], plain.assigned[there]
    )


def test_nan_stays_in_its_lane_and_ends():
    source, target, keep = profiles(CASES[0], 0)

    def single(v):
        return jnp.asarray(v, jnp.float32 if np.asarray(v).dtype == float else None)

    source, target = (jax.tree.map(single, tree) for tree in (source, target))

    def two(tree):
        return jax.tree.map(lambda v: jnp.stack([v, v]), tree)

    bad = two(source)
    bad = bad._replace(
        fit=bad.fit._replace(weight=bad.fit.weight.at[1].set(jnp.nan)),
        mean_logits=bad.mean_logits.at[1].set(jnp.nan),
    )
    out = jax.jit(jax.vmap(screen))(bad, two(target), jnp.stack([keep, keep]))
    alone = RUN(source, target, keep)
    np.testing.assert_allclose(out.target_loss[0], alone.target_loss, rtol=1e-6)
    assert np.isnan(out.target_loss[1])


def test_the_ladder_is_geometric_and_holds():
    for steps in (1, 2, 4):
        sizes = [geometric_bucket(n, steps) for n in range(1, 3000)]
        assert all(s >= n for n, s in enumerate(sizes, 1))
        assert sizes == sorted(sizes)
        assert all(s <= n * (1 + 1 / steps) for n, s in enumerate(sizes, 1))
        assert len(set(sizes)) <= steps * 12 + steps


def test_gradients_of_the_figures_are_finite(x64):
    """The closed form differentiates: by the target's predictions, against central
    differences.
    """
    source, target, keep = jax.tree.map(jnp.asarray, profiles(CASES[1], 3))

    @jax.jit
    def loss(held):
        return screen(source, target._replace(held=held), keep).tight

    slope = jax.jit(jax.grad(loss))(target.held)
    way = jnp.asarray(np.random.default_rng(0).normal(size=slope.shape))
    step = 1e-6
    difference = (loss(target.held + step * way) - loss(target.held - step * way)) / (
        2 * step
    )
    np.testing.assert_allclose(jnp.sum(slope * way), difference, rtol=1e-5, atol=1e-7)
