"""What several kinds of pages show: parts of bounds, a score against a truth, a map of
tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tta_jax.analysis.decomposition import rung_parts
from tta_jax.analysis.result import headline_bound
from tta_jax.evaluation.regression import fit_line
from tta_jax.report.embedding import fit_mds
from tta_jax.report.figures.bounds import parts_figure
from tta_jax.report.figures.scores import score_figure
from tta_jax.report.figures.tasks import task_map_figure
from tta_jax.report.html.page import Page
from tta_jax.report.task_graph import TaskGraph, task_graph

_SHARES = ("accuracy", "probe accuracy", "target accuracy", "probe_accuracy")
PERCENT: dict[str, str] = dict.fromkeys(_SHARES, ".1%")


def trimmed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the columns that are blank in every row."""
    names = dict.fromkeys(name for row in rows for name in row)
    kept = [
        name for name in names if any(row.get(name) not in ("", None) for row in rows)
    ]
    return [{name: row.get(name) for name in kept} for row in rows]


def as_rows(values: Mapping[str, Any], key: str, value: str) -> list[dict[str, Any]]:
    """Return a mapping as the rows of a table with two columns."""
    return [{key: name, value: content} for name, content in values.items()]


def add_provenance(
    page: Page, config: Mapping[str, Any], versions: Mapping[str, Any]
) -> None:
    """Add the tables of the configuration and of the versions."""
    fields = {name: str(value) for name, value in config.items()}
    page.table(as_rows(fields, "field", "value"), caption="Configuration")
    numbers = {name: str(version) for name, version in versions.items()}
    page.table(as_rows(numbers, "library", "version"), caption="Versions")


def add_parts(
    page: Page,
    results: Sequence[Any],
    names: Sequence[str] | None = None,
    more: str = "",
) -> None:
    """The figure of the parts of one or several bounds; `more` goes on in its
    caption.
    """
    sums = [
        ", ".join(
            f"{rung} {sum(found.values()):.3g}"
            for rung, found in rung_parts(bound).items()
        )
        for bound in (
            row if isinstance(row, Mapping) else headline_bound(row)[0]
            for row in results
        )
    ]
    named = (
        [f"{name}: {total}" for name, total in zip(names, sums, strict=True)]
        if names
        else sums
    )
    page.figure(
        parts_figure(results, names),
        caption="Parts of the bound, nats: each bar is a rung of the chain, and its "
        "parts add up to it. Every panel has a "
        "linear scale of its own; marks show the target loss and what guessing costs."
        + more,
        alt="Stacked bars of the parts of each bound, nats. "
        + "; ".join(named[:20])
        + ".",
    )


def add_scatter(
    page: Page,
    scores: Sequence[Any],
    truth: Sequence[Any],
    groups: Sequence[str] | None,
    names: Sequence[str] | None,
    score_name: str,
    truth_name: str,
) -> None:
    """A score against a truth, or a line that says why there is no figure."""

    def number(values):
        return np.array([np.nan if v is None else float(v) for v in values])

    x, y = number(scores), number(truth)
    several = groups is not None and len(set(groups)) < len(groups)
    groups = groups if several else None
    try:
        line = fit_line(x, y, groups)
    except ValueError:
        page.text(f"Too few pairs to set the {score_name} against the {truth_name}.")
        return
    page.figure(
        score_figure(
            x, y, groups, names, score_name=score_name, truth_name=truth_name, line=line
        ),
        caption=(
            f"The {score_name} against the {truth_name}, with the least-squares "
            f"line and its bootstrap band. {line.words()}."
        ),
        alt=(
            f"Scatter plot of the {score_name} against the {truth_name}. "
            f"{line.words()}."
        ),
    )


def add_map(page: Page, rows: Sequence[Mapping[str, Any]], more: str = "") -> None:
    """A map of the tasks, where there are sources to tell apart; otherwise a line."""
    page.section("Map of the tasks")
    try:
        found = task_graph(rows)
    except ValueError:
        found = None
    if (
        found is None
        or len({source for source, _ in found.best}) < 2
        or len(found.names) < 4
    ):
        page.text(
            "A map needs at least four tasks and two sources that are best for some "
            "target."
        )
        return
    _draw_map(page, found, more)


def _draw_map(page: Page, found: TaskGraph, more: str) -> None:
    placed = fit_mds(found.distances.astype(np.float32))
    page.figure(
        task_map_figure(found),
        caption="Related tasks are near each other; an arrow leads from the best "
        "source of each target to it. The distance "
        "of two tasks is 1 less the score (taken between 0 and 1), averaged over both "
        "directions; where two tasks have no "
        f"score it is the shortest path over others ({found.measured:.0%} of the pairs "
        "have one). How far the plane bends "
        f"these distances is their stress, {float(placed.stress):.2f}: below 0.1 they "
        "can be read off, above 0.3 only the coarsest neighbourhoods."
        + more
        + (
            f" Not related to the others: {', '.join(found.left_out)}."
            if found.left_out
            else ""
        ),
        alt=f"Map of {len(found.names)} tasks by relatedness. Best sources: "
        + "; ".join(
            f"{found.names[s]} for {found.names[t]}" for s, t in found.best[:30]
        )
        + ".",
    )
