"""Figures of features, classes, tasks and scores (matplotlib, imported when one is
drawn).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tta_jax.report.drawing import (
    FAINT,
    INK,
    SOURCE,
    bare,
    group_colours,
    new_figure,
    place_labels,
    said,
    write_figure,
)
from tta_jax.report.figures import name_classes, write_numbers
from tta_jax.report.lines import Line, fit_line
from tta_jax.report.parts import class_shares
from tta_jax.report.planes import Relations, class_distances, clouds_of, plane_of
from tta_jax.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tta_jax.analysis import Analysis

_LEGEND = 12  # groups up to which a legend names them
_POINTS = 900  # of a domain that are drawn
_PANELS = ("before the map", "after the map")
_MOST_NAMED = 40  # classes that are named where they lie
_NAMED = 15  # points up to which each is named


def features_figure(
    result: Analysis,
    source: Task,
    target: Task,
    path: str | os.PathLike | None = None,
    *,
    space: str = "features",
) -> Figure:
    """Source and target before and after the learned map, in one plane.

    The plane is spanned by the first two principal axes (computed on the device) of
    source and target, before and after, each of the same weight; both panels show the
    same plane on the same scale, and the axes say how much of the variance they hold.
    Colours are target classes; a source item has the colour of the class that its own
    class carries most of, or is grey if it carries none. Up to 900 items of each task
    are drawn, with a fixed seed.

    Args:
      source, target: the tasks that were analysed.
      space: "features", in which the map moves the source, or "logits", in which it
        moves the target; see `planes.clouds_of`.

    Raises:
      ValueError: as `planes.clouds_of`.
    """
    most = max(
        _POINTS // max(len(result.source_classes), len(result.target_classes)), 2
    )
    clouds = clouds_of(result, source, target, most, space=space)
    axes = clouds.axes(2)

    def plane(rows):
        return np.pad(
            points := np.asarray(axes(rows)), ((0, 0), (0, 2 - points.shape[1]))
        )

    share = [*(np.asarray(axes.variances) / max(float(axes.total), 1e-30)), 0.0]
    colours = group_colours(range(len(result.target_classes))) | {-1: "#bbbbbb"}
    figure = new_figure(figsize=(10.5, 5.4), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for panel, mine, theirs, title in zip(
        panels, clouds.source, clouds.target, _PANELS, strict=True
    ):
        for points, labels, marker in (
            (plane(mine), clouds.carried, "^"),
            (plane(theirs), clouds.labels, "o"),
        ):
            hue = [colours[int(k)] for k in labels]
            full = marker == "o"
            panel.scatter(
                *points.T,
                s=16 if full else 20,
                marker=marker,
                alpha=0.75,
                linewidths=0 if full else 0.8,
                facecolors=hue if full else "none",
                edgecolors="none" if full else hue,
                rasterized=True,
            )
        panel.set_title(title, fontsize=11)
        panel.set_xlabel(
            f"{space}, first principal axis ({share[0]:.0%} of the variance)"
        )
        bare(panel)
    panels[0].set_ylabel(f"second principal axis ({share[1]:.0%})")
    look: dict[str, Any] = {"s": 28, "edgecolors": INK, "linewidths": 0.8}
    handles = [
        panels[0].scatter(
            [],
            [],
            marker="^",
            facecolors="none",
            label=said(f"source: {result.source_name}"),
            **look,
        ),
        panels[0].scatter(
            [],
            [],
            marker="o",
            facecolors=INK,
            label=said(f"target: {result.target_name}"),
            **look,
        ),
    ]
    if len(result.target_classes) <= _LEGEND:
        handles += [
            panels[0].scatter(
                [], [], s=36, marker="s", color=colours[k], label=said(name, 20)
            )
            for k, name in enumerate(result.target_classes)
        ]
    if min(clouds.carried.min(), clouds.labels.min()) < 0:
        handles.append(
            panels[0].scatter(
                [],
                [],
                s=36,
                marker="s",
                color=colours[-1],
                label="carries no class, no label",
            )
        )
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 6),
        frameon=False,
        fontsize=9,
    )
    there = np.unique(clouds.labels[clouds.labels >= 0])
    if (
        _LEGEND < len(there) <= _MOST_NAMED
    ):  # too many for a legend: each name stands by its class
        points = plane(clouds.target[1])
        means = np.stack([points[clouds.labels == k].mean(0) for k in there])
        place_labels(
            panels[1], means, [said(result.target_classes[int(k)], 20) for k in there]
        )
    return write_figure(figure, path)


def distance_figure(
    result: Analysis,
    source: Task,
    target: Task,
    path: str | os.PathLike | None = None,
    *,
    space: str = "features",
) -> Figure:
    """Distances between target and source classes before and after the learned map, as
    `planes.class_distances` defines them.

    Target classes are ordered by the first singular vector of their distances after the
    map, so that like classes are neighbours; every source class stands where the target
    class stands that it carries most of, those that carry none last. Frames mark the
    pairs that the label coupling joins. Of more than 40 source classes only those are
    shown that carry something.

    Raises:
      ValueError: as `planes.class_distances`.
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
    for panel, values, title in zip(panels, found, _PANELS, strict=True):
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
        panel.set_xlabel(f"{said(result.source_name)} (source class)")
    panels[0].set_ylabel(f"{said(result.target_name)} (target class)")
    figure.colorbar(image, ax=panels, label="W2 distance")
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
        few = len(colours) <= _LEGEND
        for group, color in colours.items():
            inside = [k for k, other in enumerate(mine) if other == group]
            axis.scatter(
                x[inside],
                y[inside],
                s=26,
                color=[color],
                zorder=3,
                label=said(group, 24) if few else None,
            )
    axis.margins(0.08)
    # A band of few points leaves the axes; the points say what is to be seen.
    room = 0.15 * max(float(np.ptp(y)), 1e-9)
    axis.set_ylim(y.min() - room, y.max() + room)
    axis.set_xlabel(said(score_name, 60))
    axis.set_ylabel(said(truth_name, 60))
    span = f" ({line.low:.2f} to {line.high:.2f})" if np.isfinite(line.low) else ""
    axis.set_title(f"Pearson r = {line.pearson:.2f}{span}", fontsize=11, loc="left")
    bare(axis)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    if names is not None and len(x) <= _NAMED:
        place_labels(
            axis, np.stack([x, y], axis=1), [said(names[k], 24) for k in there.tolist()]
        )
    return write_figure(figure, path)


def task_map_figure(found: Relations, path: str | os.PathLike | None = None) -> Figure:
    """All tasks in a plane, related ones near each other; an arrow leads from the best
    source of each target to it.

    Distances are those of `planes.relations`: 1 less the score, averaged over both
    directions, and shortest paths where two tasks have no score. `planes.plane_of`
    places them on the device; the title gives Kruskal's stress-1 (below 0.1 distances
    can be read off, above 0.3 only the coarsest neighbourhoods can be trusted).
    Readable up to some 30 tasks.

    Args:
      found: what `planes.relations` gives.
    """
    placed = plane_of(found.distances.astype(np.float32))
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
    place_labels(axis, points, [said(name, 24) for name in found.names])
    return write_figure(figure, path)
