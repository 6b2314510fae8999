"""The graph of tasks that a table of scores describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tta_jax.evaluation.score_tables import lower_is_better


class TaskGraph(NamedTuple):
    """Distances between tasks.

    Attributes:
      names: `n` tasks.
      distances: `(n, n)`, symmetric, 0 on the diagonal.
      measured: share of the pairs of tasks with a score of their own; the others go
        over tasks in between.
      sources: `(n,)` bool, whether a task was a source.
      best: (source, target) indices: each target's best source.
      left_out: tasks without a path to the others.
    """

    names: tuple[str, ...]
    distances: np.ndarray
    measured: float
    sources: np.ndarray
    best: tuple[tuple[int, int], ...]
    left_out: tuple[str, ...]


def task_graph(rows: Sequence[Mapping[str, Any]], score: str = "score") -> TaskGraph:
    """How far tasks are from each other, from rows `source, target, SCORE`.

    The distance of a pair is `1 - score`, scores taken between 0 (guessing) and 1;
    another column than "score" is put on that scale by its least and largest value,
    those that are ranked from the least turned round. Scores of both directions are
    averaged, of several rows of one direction (encoders) the best counts. A pair
    without a score gets the length of the shortest path over other tasks.

    Raises:
      ValueError: where no row has both names and a number, or fewer than three tasks
        hang together.
    """
    sign = -1.0 if lower_is_better(score) else 1.0
    given = [
        (str(row["source"]), str(row["target"]), sign * float(row[score]))
        for row in rows
        if row.get(score) is not None and np.isfinite(float(row[score]))
    ]
    if not given:
        raise ValueError(f"rows: none has a source, a target and a number in {score!r}")
    names = list(
        dict.fromkeys(name for source, target, _ in given for name in (source, target))
    )
    place = {name: k for k, name in enumerate(names)}
    table = np.full((len(names), len(names)), np.nan)
    for source, target, value in given:
        at = place[source], place[target]
        table[at] = np.fmax(table[at], value)
    low, high = (0.0, 1.0) if score == "score" else (np.nanmin(table), np.nanmax(table))
    own = 1 - np.clip((table - low) / (high - low if high > low else 1.0), 0, 1)
    np.fill_diagonal(table, np.nan)  # a task is nearest to itself, which says nothing
    best = {
        t: int(np.nanargmax(table[:, t]))
        for t in range(len(names))
        if np.isfinite(table[:, t]).any()
    }
    known = np.isfinite(own)
    both = known + known.T.astype(int)
    total = np.where(known, own, 0.0) + np.where(known, own, 0.0).T
    distances = np.where(both > 0, total / np.maximum(both, 1), np.inf)
    np.fill_diagonal(distances, 0.0)
    for k in range(len(names)):  # Floyd and Warshall, only where there is no score
        through = distances[:, k, None] + distances[None, k]
        distances = np.where(both > 0, distances, np.minimum(distances, through))
    component = np.isfinite(distances)[np.argmax(np.isfinite(distances).sum(1))]
    kept = np.flatnonzero(component)
    if len(kept) < 3:
        raise ValueError(
            f"rows: a map needs three tasks that hang together; {len(kept)} do"
        )
    number = {int(old): new for new, old in enumerate(kept)}
    inside, others = np.ix_(kept, kept), ~np.eye(len(kept), dtype=bool)
    return TaskGraph(
        tuple(names[k] for k in kept),
        distances[inside],
        float((both > 0)[inside][others].mean()),
        np.array([np.isfinite(table[k]).any() for k in kept]),
        tuple(
            (number[source], number[target])
            for target, source in best.items()
            if target in number
        ),
        tuple(names[k] for k in np.flatnonzero(~component)),
    )
