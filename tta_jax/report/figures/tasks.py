"""Draw distances between classes and the graph of tasks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from tta_jax.analysis.result import class_shares
from tta_jax.report.class_distances import class_distances
from tta_jax.report.embedding import fit_mds
from tta_jax.report.figures._style import (
    FAINT,
    INK,
    PANELS,
    SOURCE,
    new_figure,
    place_labels,
    truncate_label,
    write_figure,
)
from tta_jax.report.figures.bounds import name_classes, write_numbers
from tta_jax.report.task_graph import TaskGraph
from tta_jax.tasks.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tta_jax.analysis.result import Analysis


def distance_figure(
    result: Analysis,
    source: Task,
    target: Task,
    path: str | os.PathLike | None = None,
    *,
    space: str = "features",
) -> Figure:
    """Distances between target and source classes before and after the learned map, as
    `class_distances` defines them.

    Target classes are ordered by the first singular vector of their distances after the
    map, so that like classes are neighbours; every source class stands where the target
    class stands that it carries most of, those that carry none last. Frames mark the
    pairs that the label coupling joins. Of more than 40 source classes only those are
    shown that carry something.

    Raises:
      ValueError: as `class_distances`.
    """
    found = class_distances(result, source, target, space=space)
    joint = np.asarray(result.transforms.coupling)
    known = np.nan_to_num(found.after, nan=float(np.nanmean(found.after)))
    left = np.linalg.svd(known - known.mean(0, keepdims=True), full_matrices=False)[0][
        :, 0
    ]
    rows = np.argsort(left * np.sign(left[np.argmax(np.abs(left))]), kind="stable")
    place = np.argsort(rows)
    carried = np.where(joint.sum(0) > 0, place[joint.argmax(0)], len(rows))
    columns = np.argsort(carried, kind="stable")
    if len(columns) > 40:
        columns = columns[carried[columns] < len(rows)]
    most = float(np.nanmax([found.before[:, columns], found.after[:, columns]]))
    width = 0.42 * len(columns) + 1.2
    figure = new_figure(
        figsize=(min(2 * width + 2, 15), min(0.34 * len(rows) + 2.2, 12)),
        layout="constrained",
    )
    panels = figure.subplots(1, 2, sharey=True)
    image: Any = None
    for panel, values, title in zip(panels, found, PANELS, strict=True):
        shown = values[np.ix_(rows, columns)]
        panel.set_facecolor("#dddddd")  # of a class without items
        image = panel.imshow(shown, cmap="viridis_r", vmin=0, vmax=most, aspect="auto")
        name_classes(
            panel,
            [result.target_classes[int(k)] for k in rows],
            [result.source_classes[int(k)] for k in columns],
        )
        write_numbers(panel, shown, ".1f", dark=shown > 0.5 * most)
        for row, column in np.argwhere(
            class_shares(result)[np.ix_(rows, columns)] >= 0.005
        ):
            # White on black: seen on every colour of the scale.
            for color, thick in (("white", 3.2), (INK, 1.4)):
                corners = np.array(
                    [[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]]
                ) * 0.46 + [column, row]
                panel.plot(*corners.T, color=color, lw=thick)
        panel.set_title(title, fontsize=11)
        panel.set_xlabel(f"{truncate_label(result.source_name)} (source class)")
    panels[0].set_ylabel(f"{truncate_label(result.target_name)} (target class)")
    figure.colorbar(image, ax=panels, label="W2 distance")
    return write_figure(figure, path)


def task_map_figure(found: TaskGraph, path: str | os.PathLike | None = None) -> Figure:
    """All tasks in a plane, related ones near each other; an arrow leads from the best
    source of each target to it.

    Distances are those of `task_graph`: 1 less the score, averaged over both
    directions, and shortest paths where two tasks have no score. `fit_mds`
    places them; the title gives Kruskal's stress-1 (below 0.1 distances
    can be read off, above 0.3 only the coarsest neighbourhoods can be trusted).
    Readable up to some 30 tasks.

    Args:
      found: what `task_graph` gives.
    """
    placed = fit_mds(found.distances.astype(np.float32))
    points = np.asarray(placed.points)
    wide, high = np.ptp(points, axis=0) + 1e-9
    figure = new_figure(
        figsize=(9, float(np.clip(9 * high / wide, 4.5, 9)) + 0.8), layout="constrained"
    )
    axis = figure.subplots()
    axis.set_aspect("equal", adjustable="datalim")
    axis.margins(0.15)
    targets = {target for _, target in found.best}
    kinds = {
        "source only": (
            "^",
            SOURCE,
            [k for k in range(len(points)) if k not in targets],
        ),
        "target only": ("o", "#cc3311", [k for k in targets if not found.sources[k]]),
        "source and target": ("s", "#228833", [k for k in targets if found.sources[k]]),
    }
    for kind, (marker, color, places) in kinds.items():
        if places:
            axis.scatter(
                *points[sorted(places)].T,
                marker=marker,
                color=color,
                s=42,
                zorder=3,
                label=kind,
            )
    look = {
        "arrowstyle": "-|>",
        "color": FAINT,
        "lw": 0.8,
        "shrinkA": 5,
        "shrinkB": 5,
        "alpha": 0.8,
    }
    for source, target in found.best:
        axis.annotate("", points[target], points[source], arrowprops=look, zorder=1)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(
        f"{len(points)} tasks, stress {float(placed.stress):.2f}",
        fontsize=10,
        loc="left",
    )
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    place_labels(axis, points, [truncate_label(name, 24) for name in found.names])
    return write_figure(figure, path)
