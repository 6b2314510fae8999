"""Figures that only the study has; the others are `tta_jax.report`'s."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from benchmarks.study.tables import RUNGS, Row, column
from tta_jax.report.figures._style import (
    EXCESS,
    FAINT,
    GROUPS,
    INK,
    MISMATCH,
    SOURCE,
    new_figure,
    remove_spines,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = {
    "target_loss": INK,
    "tight": SOURCE,
    "oscillation": "#228833",
    "lipschitz": MISMATCH,
    "theorem": EXCESS,
}


def chain(rows: list[Row]) -> Figure:
    """Every pair's rungs as shares of H(p_T) on a log scale, a panel for each group;
    the line is guessing.
    """
    groups = list(dict.fromkeys(row["group"] for row in rows))
    names = ["target_loss", *RUNGS]
    figure = new_figure(figsize=(8, 1.2 + 1.5 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False)[:, 0]
    rng = np.random.default_rng(0)
    for panel, group in zip(panels, groups, strict=True):
        mine = [row for row in rows if row["group"] == group]
        unit = column(mine, "prior_entropy")
        for place, name in enumerate(names):
            share = column(mine, name) / unit
            share = np.maximum(share[np.isfinite(share)], 1e-3)
            panel.plot(
                share,
                place + rng.uniform(-0.25, 0.25, len(share)),
                ".",
                color=_COLOURS[name],
                ms=4,
                alpha=0.6,
            )
            panel.plot(
                [np.median(share)] * 2, [place - 0.4, place + 0.4], color=INK, lw=1.5
            )
        panel.axvline(1, color="#cc3311", lw=1)
        panel.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        panel.invert_yaxis()
        panel.set_xscale("log")
        panel.set_title(f"{group}: {len(mine)} pairs", fontsize=10, loc="left")
        remove_spines(panel)
    panels[-1].set_xlabel(
        "held-out bound / H(p_T); left of the red line it says more than guessing"
    )
    return figure


def agreement(groups: dict[str, list[Row]]) -> Figure:
    """Score against the chance-corrected accuracy of a linear probe, a panel for each
    group of pairs.
    """
    columns = min(2, len(groups))
    lines = -(-len(groups) // columns)
    figure = new_figure(figsize=(4.5 * columns, 3.6 * lines), layout="constrained")
    panels = figure.subplots(
        lines, columns, squeeze=False, sharex=True, sharey=True
    ).ravel()
    for panel in panels[len(groups) :]:
        panel.set_visible(False)
    for panel, (name, rows) in zip(panels, groups.items(), strict=False):
        x, y = column(rows, "score"), column(rows, "chance_corrected")
        encoders = np.array([row["encoder"] for row in rows])
        few = list(dict.fromkeys(encoders)) if len(set(encoders)) <= 4 else []
        for shade, encoder in zip(GROUPS, few or [None], strict=False):
            mine = slice(None) if encoder is None else encoders == encoder
            panel.plot(
                x[mine], y[mine], ".", color=shade, ms=7, alpha=0.7, label=encoder
            )
        there = np.isfinite(x) & np.isfinite(y)
        panel.set_title(f"{name}: {there.sum()} pairs", fontsize=10, loc="left")
        if there.sum() > 2 and np.ptp(x[there]) > 0:
            ends = np.array([x[there].min(), x[there].max()])
            panel.plot(
                ends,
                np.polyval(np.polyfit(x[there], y[there], 1), ends),
                color=INK,
                lw=1,
            )
        if few:
            panel.legend(fontsize=8, frameon=False, loc="lower right")
        remove_spines(panel)
    figure.supxlabel(
        "score: share of the label uncertainty that is removed, held out", fontsize=10
    )
    figure.supylabel("accuracy of a linear probe, chance-corrected", fontsize=10)
    return figure


def sizes(rows: list[Row]) -> Figure:
    """The chain over the number of labelled target items; of the objectives the one
    with the lowest rung.
    """
    pairs = list(dict.fromkeys((row["source"], row["target"]) for row in rows))
    figure = new_figure(figsize=(4 * len(pairs) + 1, 4), layout="constrained")
    panels = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
    for panel, pair in zip(panels, pairs, strict=True):
        mine = [row for row in rows if (row["source"], row["target"]) == pair]
        items = sorted({row["items"] for row in mine})
        for name in ("target_loss", *RUNGS):
            best = []
            for number in items:
                here = [row for row in mine if row["items"] == number]
                best.append(
                    np.nanmin(column(here, name) / column(here, "prior_entropy"))
                )
            style = (
                "o:" if name == "theorem" else "o-"
            )  # which hides `lipschitz` on most pairs
            panel.plot(
                items,
                best,
                style,
                color=_COLOURS[name],
                ms=4,
                lw=1.5,
                label=name.replace("_", " "),
            )
        panel.axhline(1, color="#cc3311", lw=1, label="guessing")
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_title(f"{pair[0]} to {pair[1]}", fontsize=10, loc="left")
        panel.set_xlabel("labelled target items")
        remove_spines(panel)
    panels[0].set_ylabel("held-out bound / H(p_T)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize=9
    )
    return figure


def ablation(tables: dict[str, list[Row]]) -> Figure:
    """Mean bound of each setting of the ablation with its interval and the mean target
    loss, a panel for each algorithm.
    """
    figure = new_figure(figsize=(8, 0.6 + 1.7 * len(tables)), layout="constrained")
    panels = figure.subplots(len(tables), 1, squeeze=False)[:, 0]
    for panel, (title, rows) in zip(panels, tables.items(), strict=True):
        places = np.arange(len(rows))
        panel.barh(
            places,
            column(rows, "mean bound"),
            color=SOURCE,
            height=0.55,
            label="mean bound, 95 % interval",
        )
        panel.hlines(
            places, column(rows, "low"), column(rows, "high"), color=INK, lw=1.5
        )
        panel.plot(
            column(rows, "target loss"),
            places,
            "D",
            color=INK,
            mfc="white",
            label="mean target loss",
        )
        panel.set_yticks(places, [row["setting"] for row in rows])
        panel.invert_yaxis()
        panel.set_title(title, fontsize=10, loc="left")
        panel.spines["bottom"].set_color(FAINT)
        remove_spines(panel)
    panels[-1].set_xlabel("nats")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9
    )
    return figure
