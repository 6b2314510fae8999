"""The bound `directed` in the star with source weights that may be chosen, up to a cap
(docs/theory.md, section 5.2); on the host.
"""

from __future__ import annotations

import jax
import numpy as np

from tta_jax.bounds.star import StarItems


def capped_directed(
    source: StarItems,
    target: StarItems,
    losses: np.ndarray,
    scale: float,
    cap: float,
) -> float:
    """Compute the least `directed` over source weights, none more than `cap` times that
    of equal weights within its class; nats.

    The theorem holds for any weights of source items. With cap 1 this is `directed`;
    without a cap it says nothing about the source, since a few good items are enough.

    Args:
      source, target, scale: as for `star_chain`; NumPy arrays.
      losses: `star_losses` of the source items, `(n,)` nats.
      cap: R, at least 1.
    """
    source, target = (jax.tree.map(np.asarray, x) for x in (source, target))
    total = 0.0
    for t in np.unique(target.labels[target.mass > 0]):
        s, u = ((x.labels == t) & (x.mass > 0) for x in (source, target))
        branch, radius = (
            np.concatenate([getattr(source, name)[s], getattr(target, name)[u]])
            for name in ("branch", "radius")
        )
        supply = np.concatenate([cap * source.mass[s], np.zeros(u.sum())])
        demand = np.concatenate([np.zeros(s.sum()), target.mass[u]])
        cost = np.concatenate([losses[s], np.zeros(u.sum())])
        total += _least_cost(branch == t, branch, scale * radius, supply, demand, cost)
    return total


def _least_cost(
    own: np.ndarray,
    branch: np.ndarray,
    radius: np.ndarray,
    supply: np.ndarray,
    demand: np.ndarray,
    cost: np.ndarray,
) -> float:
    """Choose weights below `supply`, with the sum of `demand`, of least cost and way.

    Flow inwards costs on a class's own branch, flow outwards on the others. A linear
    program: weight by weight, and the flow in both directions on the way from each item
    to the next one inwards.

    Args:
      own, branch, radius: of items of one class of both tasks, `(n,)`.
      supply, demand, cost: `(n,)`; the cost is that of a unit of weight.
    """
    from scipy.optimize import linprog
    from scipy.sparse import csr_array, eye_array, hstack, vstack

    # Items on one place of a branch are one item; what is free of cost comes with it.
    order = np.lexsort((radius, branch))
    own, branch, radius, supply, demand, cost = (
        v[order] for v in (own, branch, radius, supply, demand, cost)
    )
    first = np.r_[True, (branch[1:] != branch[:-1]) | (radius[1:] != radius[:-1])]
    place = np.cumsum(first) - 1
    count = int(place[-1]) + 1
    at = np.flatnonzero(first)
    most, wanted = (np.bincount(place, v, count) for v in (supply, demand))
    charge = np.zeros(count)
    np.maximum.at(charge, place, np.where(supply > 0, cost, 0.0))
    own, branch, radius = own[at], branch[at], radius[at]
    same = np.r_[False, branch[1:] == branch[:-1]]
    length = radius - np.where(same, np.r_[0.0, radius[:-1]], 0.0)
    # What leaves a place inwards is what arrives from beyond, and its own surplus.
    beyond = np.flatnonzero(same)
    edges = eye_array(count)
    arrives = csr_array(
        (np.ones(len(beyond)), (beyond - 1, beyond)), shape=(count, count)
    )
    leaves = edges - arrives
    whole = csr_array(np.r_[np.ones(count), np.zeros(2 * count)][None])
    found = linprog(
        np.r_[charge, np.where(own, length, 0.0), np.where(own, 0.0, length)],
        A_eq=vstack([hstack([-edges, leaves, -leaves]), whole]),
        b_eq=np.r_[-wanted, wanted.sum()],
        bounds=np.c_[np.zeros(3 * count), np.r_[most, np.full(2 * count, np.inf)]],
        method="highs",
    )
    return float(found.fun)
