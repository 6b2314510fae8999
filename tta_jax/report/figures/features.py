"""Draw the features of a pair in one plane."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from tta_jax.report.embedding import project_features
from tta_jax.report.figures._style import (
    INK,
    LEGEND,
    MAX_NAMED,
    PANELS,
    group_colours,
    new_figure,
    place_labels,
    remove_spines,
    truncate_label,
    write_figure,
)
from tta_jax.tasks.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tta_jax.analysis.result import Analysis

_POINTS = 900  # of a domain that are drawn


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
        moves the target; see `embedding.project_features`.

    Raises:
      ValueError: as `embedding.project_features`.
    """
    most = max(
        _POINTS // max(len(result.source_classes), len(result.target_classes)), 2
    )
    clouds = project_features(result, source, target, most, space=space)
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
        panels, clouds.source, clouds.target, PANELS, strict=True
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
        remove_spines(panel)
    panels[0].set_ylabel(f"second principal axis ({share[1]:.0%})")
    look: dict[str, Any] = {"s": 28, "edgecolors": INK, "linewidths": 0.8}
    handles = [
        panels[0].scatter(
            [],
            [],
            marker="^",
            facecolors="none",
            label=truncate_label(f"source: {result.source_name}"),
            **look,
        ),
        panels[0].scatter(
            [],
            [],
            marker="o",
            facecolors=INK,
            label=truncate_label(f"target: {result.target_name}"),
            **look,
        ),
    ]
    if len(result.target_classes) <= LEGEND:
        handles += [
            panels[0].scatter(
                [],
                [],
                s=36,
                marker="s",
                color=colours[k],
                label=truncate_label(name, 20),
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
        LEGEND < len(there) <= MAX_NAMED
    ):  # too many for a legend: each name stands by its class
        points = plane(clouds.target[1])
        means = np.stack([points[clouds.labels == k].mean(0) for k in there])
        place_labels(
            panels[1],
            means,
            [truncate_label(result.target_classes[int(k)], 20) for k in there],
        )
    return write_figure(figure, path)
