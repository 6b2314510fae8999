"""Draw scores against the truth."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tta_jax.evaluation.regression import Line, fit_line
from tta_jax.report.figures._style import (
    EXCESS,
    FAINT,
    INK,
    LEGEND,
    NAMED_TASKS,
    SOURCE,
    group_colours,
    new_figure,
    place_labels,
    remove_spines,
    truncate_label,
    write_figure,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tta_jax.evaluation.evaluate import Evaluation


def evaluation_figure(
    result: Evaluation,
    statistic: str = "weighted_tau",
    path: str | os.PathLike | None = None,
) -> Figure:
    """Scores, best on top: the mean of a statistic with its interval, every target as a
    dot; written to `path`.
    """
    rows = [row for row in result.table(statistic) if np.isfinite(row[statistic])]
    figure = new_figure(figsize=(7, 0.32 * len(rows) + 1.3))
    axis = figure.subplots()
    for place, row in enumerate(rows):
        color = EXCESS if row["kind"] == "baseline" else SOURCE
        values = result.estimates[row["score"]][statistic].per_target
        if len(result.targets) > 1:
            axis.plot(
                values,
                np.full(len(values), place),
                "o",
                color=color,
                alpha=0.5,
                ms=4,
                mec="none",
            )
        if np.isfinite(row["low"]):
            axis.plot([row["low"], row["high"]], [place, place], color=color, lw=1)
        axis.plot(row[statistic], place, "o", color=color, ms=7)
    axis.plot([], [], "o", color=SOURCE, label="score")
    axis.plot([], [], "o", color=EXCESS, label="baseline")
    axis.axvline(0, color=FAINT, lw=0.8)
    axis.set_yticks(
        range(len(rows)),
        [
            truncate_label(row["score"])
            + (" (pool)" if row["kind"] == "pooled" else "")
            for row in rows
        ],
    )
    axis.invert_yaxis()
    drawn = "targets and models" if result.over == "both" else result.over
    axis.set_xlabel(
        f"{statistic.replace('_', ' ')} with "
        f"{result.truth_name.replace('_', ' ')}, "
        f"{result.interval:.0%} over {drawn}"
    )
    axis.set_title(f"{len(result.targets)} targets, {len(result.models)} models")
    remove_spines(axis)
    axis.legend(
        frameon=False,
        fontsize=9,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.5 / (0.32 * len(rows) + 1.3) - 0.06),
        ncols=2,
    )
    return write_figure(figure, path)


def score_figure(
    scores: Any,
    truth: Any,
    groups: Sequence[object] | None = None,
    names: Sequence[str] | None = None,
    *,
    score_name: str = "score",
    truth_name: str = "accuracy",
    line: Line | None = None,
    path: str | os.PathLike | None = None,
) -> Figure:
    """A bound, or any score, against accuracy or loss: points, the least-squares line
    with its bootstrap band, Pearson's r.

    Args:
      scores, truth: `(n,)`; pairs with a blank are left out.
      groups: `(n,)` what colours tell apart, for example targets; a legend names up to
        12.
      names: `(n,)` of points, written beside them where there are at most 15.
      line: as `lines.fit_line` gives it for the same points; fitted when None.

    Raises:
      ValueError: as `lines.fit_line`.
    """
    line = fit_line(scores, truth, groups) if line is None else line
    x, y = np.asarray(scores, float), np.asarray(truth, float)
    there = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    x, y = x[there], y[there]
    figure = new_figure(figsize=(7, 5), layout="constrained")
    axis = figure.subplots()
    grid = np.linspace(x.min(), x.max(), 100)
    low, high = line.band(grid)
    axis.fill_between(
        grid,
        low,
        high,
        color=FAINT,
        alpha=0.3,
        lw=0,
        label=f"{line.interval:.0%} band of the line",
    )
    axis.plot(
        grid,
        line.slope * grid + line.intercept,
        color=INK,
        lw=1.5,
        label="least squares",
    )
    if groups is None:
        axis.scatter(x, y, s=26, color=SOURCE, zorder=3)
    else:
        mine = [groups[k] for k in there.tolist()]
        colours = group_colours(mine)
        few = len(colours) <= LEGEND
        for group, color in colours.items():
            inside = [k for k, other in enumerate(mine) if other == group]
            axis.scatter(
                x[inside],
                y[inside],
                s=26,
                color=[color],
                zorder=3,
                label=truncate_label(group, 24) if few else None,
            )
    axis.margins(0.08)
    # A band of few points leaves the axes; the points say what is to be seen.
    margin = 0.15 * max(float(np.ptp(y)), 1e-9)
    axis.set_ylim(y.min() - margin, y.max() + margin)
    axis.set_xlabel(truncate_label(score_name, 60))
    axis.set_ylabel(truncate_label(truth_name, 60))
    span = f" ({line.low:.2f} to {line.high:.2f})" if np.isfinite(line.low) else ""
    axis.set_title(f"Pearson r = {line.pearson:.2f}{span}", fontsize=11, loc="left")
    remove_spines(axis)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    if names is not None and len(x) <= NAMED_TASKS:
        place_labels(
            axis,
            np.stack([x, y], axis=1),
            [truncate_label(names[k], 24) for k in there.tolist()],
        )
    return write_figure(figure, path)
