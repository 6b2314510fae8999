"""Figures of analyses and evaluations (matplotlib, imported when one is drawn)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tta_jax.analysis.decomposition import (
    DISTRIBUTION,
    DISTRIBUTION_OF,
    TRANSFORMED,
    figure_of,
    rung_parts,
)
from tta_jax.analysis.decomposition import MISMATCH as MISMATCH_PART
from tta_jax.analysis.decomposition import REWEIGHTED as REWEIGHTED_PART
from tta_jax.analysis.result import class_shares, headline_bound
from tta_jax.bounds.chain import RUNGS
from tta_jax.fitting.gradient_descent import VALIDATION_INTERVAL
from tta_jax.report.figures._style import (
    EXCESS,
    FAINT,
    INK,
    MISMATCH,
    REWEIGHTED,
    SOURCE,
    new_figure,
    remove_spines,
    short,
    truncate_label,
    write_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tta_jax.analysis.relatedness import Relatedness
    from tta_jax.analysis.result import Analysis

_COLOURS = {
    TRANSFORMED: SOURCE,
    REWEIGHTED_PART: REWEIGHTED,
    MISMATCH_PART: MISMATCH,
    DISTRIBUTION: EXCESS,
}
_MOST_TICKS = 40  # classes that are named along an axis
_CUT = 6.0  # medians beyond which a bar is cut
_MOST_NUMBERS = 12  # classes up to which a heat map shows its numbers


def ranking_figure(
    results: list[Analysis],
    probe_losses: list[float],
    path: str | os.PathLike | None = None,
) -> Figure:
    """Targets by held-out target loss: the parts of `tight` as bars, probe loss and
    guessing as marks; written to `path`.
    """
    height = 0.6 * len(results) + 1.6
    figure = new_figure(figsize=(8, height))
    axis = figure.subplots()
    for row, (result, probe) in enumerate(zip(results, probe_losses, strict=True)):
        bound, _ = headline_bound(result)
        source = bound.transformed_source_loss

        def label(text):
            return text if row == 0 else None

        axis.barh(
            row,
            source,
            color=SOURCE,
            height=0.55,
            label=label("transformed source loss"),
        )
        axis.barh(
            row,
            bound.tight - source,
            left=source,
            color=EXCESS,
            height=0.55,
            label=label("distribution mismatch (tight)"),
        )
        axis.plot(
            [bound.target_loss] * 2,
            [row - 0.38, row + 0.38],
            color="black",
            lw=2,
            label=label("target loss of h'''"),
        )
        axis.plot(
            probe,
            row,
            "D",
            color=INK,
            ms=6,
            mfc="white",
            label=label("linear probe loss"),
        )
        axis.plot(
            bound.prior_entropy,
            row,
            "|",
            color=FAINT,
            ms=18,
            mew=2,
            label=label("guessing, H(p_T)"),
        )
    axis.set_yticks(
        range(len(results)), [truncate_label(r.target_name) for r in results]
    )
    axis.invert_yaxis()
    axis.set_xlabel("nats, on held-out items")
    axis.set_title(f"Transfer from {truncate_label(results[0].source_name)}")
    remove_spines(axis)
    axis.legend(
        frameon=False,
        fontsize=9,
        loc="upper center",
        bbox_to_anchor=(0.45, -0.9 / height),
        ncols=3,
    )
    return write_figure(figure, path)


def analysis_figure(result: Analysis, path: str | os.PathLike | None = None) -> Figure:
    """How related the source is, above the chain of bounds on a log scale; beside them
    the label coupling with class names; written to `path`.
    """
    columns, rows = _mixing_shape(result)
    width = min(4 + 0.3 * columns, 14)
    height = max(3.2, min(1.6 + 0.3 * rows, 10))
    if result.relatedness is None:
        figure = new_figure(figsize=(5.5 + width, height))
        chain, mixing = figure.subplots(1, 2, width_ratios=[5, width])
    else:
        size = (5.5 + width, max(4.8, height))
        figure = new_figure(figsize=size, layout="constrained")
        axes = figure.subplot_mosaic(
            [["relatedness", "mixing"], ["chain", "mixing"]],
            width_ratios=[5, width],
            height_ratios=[2, 3],
        )
        chain, mixing = axes["chain"], axes["mixing"]
        _draw_relatedness(axes["relatedness"], result.relatedness)
    _draw_chain(chain, result)
    _draw_mixing(mixing, result)
    return write_figure(figure, path)


def relatedness_figure(
    result: Analysis, path: str | os.PathLike | None = None
) -> Figure:
    """The bounds from source loss and distance alone, as stacked bars, beside the cost
    of guessing; with bootstrap intervals where there are some.

    Raises:
      ValueError: the result has no relatedness.
    """
    if result.relatedness is None:
        raise ValueError(
            "result: it has no relatedness; give one with a hold-out and a source of "
            "as many classes as the target has"
        )
    figure = new_figure(figsize=(7, 2.2), layout="constrained")
    _draw_relatedness(figure.subplots(), result.relatedness)
    return write_figure(figure, path)


def _draw_relatedness(axis: Axes, related: Relatedness) -> None:
    chains = {"directed": related.bound, "theorem": related.theorem_bound}
    guessing = related.bound.prior_entropy
    ends = [guessing]
    for row, (name, bound) in enumerate(chains.items()):
        value, loss = getattr(bound, name), bound.reweighted_source_loss
        first = row == 0
        axis.barh(row, loss, 0.5, color=SOURCE, label="source loss" if first else None)
        label = "distance" if first else None
        axis.barh(row, value - loss, 0.5, left=loss, color=EXCESS, label=label)
        low, high = related.intervals.get(name, (value, value))
        if high > low:
            axis.plot([low, high], [row, row], color=INK, lw=1.5)
        label = "target loss" if first else None
        axis.plot(bound.target_loss, row, "D", color=INK, ms=6, label=label)
        ends += [value, high]
        axis.annotate(
            short(value),
            (max(value, high), row),
            (7, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axis.axvline(guessing, color="#cc3311", lw=1.5, label="guessing")
    axis.set_yticks(range(len(chains)), list(chains))
    axis.set_xlim(0, 1.12 * max(ends))
    axis.set_ylim(len(chains) - 0.5, -0.5)
    axis.set_xlabel(f"nats, held out; relatedness {related.value:.2f}")
    axis.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=4, frameon=False, fontsize=8
    )
    remove_spines(axis)


def chain_figure(result: Analysis, path: str | os.PathLike | None = None) -> Figure:
    """The chain of bounds as points on a log scale, with bootstrap intervals where
    there are some, beside the cost of guessing.
    """
    figure = new_figure(figsize=(7, 3))
    _draw_chain(figure.subplots(), result)
    return write_figure(figure, path)


def _draw_chain(axis: Axes, result: Analysis) -> None:
    bound, _ = headline_bound(result)
    names = ["target_loss", *RUNGS]
    values = np.array([figure_of(bound, name) for name in names])
    spread = {} if result.held_out is None else result.held_out.intervals
    # A log scale has no place for a loss of next to nothing: it stands on the left
    # edge, as an arrow.
    shown = [v for v in (*values, bound.prior_entropy) if np.isfinite(v) and v > 0] or [
        1.0
    ]
    floor = max(0.5 * min(shown), 1e-4 * max(shown))
    for row, (name, value) in enumerate(zip(names, values, strict=True)):
        if not np.isfinite(value):
            axis.text(floor * 1.1, row, "not certified", va="center", fontsize=9)
            continue
        color = INK if row == 0 else SOURCE if value < bound.prior_entropy else FAINT
        low, high = spread.get(name, (value, value))
        if high > low:
            axis.plot(
                [max(low, floor), max(high, floor)], [row, row], color=color, lw=1.5
            )
        axis.plot(
            max(value, floor),
            row,
            "o" if value >= floor else "<",
            color=color,
            ms=8,
            clip_on=False,
        )
        axis.annotate(
            short(value),
            (max(value, high, floor), row),
            (7, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axis.axvline(bound.prior_entropy, color=EXCESS, lw=1.5)
    axis.annotate(
        "guessing",
        (bound.prior_entropy, 1),
        (0, 4),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        color="#a04a10",
        ha="center",
        fontsize=9,
    )
    axis.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axis.set_xscale("log")
    axis.set_xlim(floor, 3 * max(shown))
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlabel("nats" + ("" if result.held_out is None else ", held out"))
    remove_spines(axis)


def mixing_figure(result: Analysis, path: str | os.PathLike | None = None) -> Figure:
    """Which source classes carry which target classes: the label coupling, each row as
    shares of its target class.

    Source classes that carry less than half a per cent of every target class are left
    out where there are more than 30, and the axis says so.
    """
    columns, rows = _mixing_shape(result)
    figure = new_figure(
        figsize=(min(3.2 + 0.4 * columns, 14), min(2.2 + 0.32 * rows, 12)),
        layout="constrained",
    )
    _draw_mixing(figure.subplots(), result)
    return write_figure(figure, path)


def _mixing_columns(result: Analysis) -> np.ndarray:
    """Indices of the source classes that are shown."""
    shares = class_shares(result)
    return (
        np.arange(shares.shape[1])
        if shares.shape[1] <= 30
        else np.flatnonzero(shares.max(0) >= 0.005)
    )


def _mixing_shape(result: Analysis) -> tuple[int, int]:
    return len(_mixing_columns(result)), len(result.target_classes)


def _draw_mixing(axis: Axes, result: Analysis) -> None:
    kept = _mixing_columns(result)
    shares = class_shares(result)[:, kept]
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    name_classes(axis, result.target_classes, [result.source_classes[k] for k in kept])
    write_numbers(
        axis, np.where(shares >= 0.005, shares, np.nan), ".2f", dark=shares > 0.5
    )
    left_out = len(result.source_classes) - len(kept)
    axis.set_ylabel(f"{truncate_label(result.target_name)} (target class)")
    axis.set_xlabel(
        f"{truncate_label(result.source_name)} (source class"
        + (f"; {left_out} that carry nothing left out)" if left_out else ")")
    )
    axis.figure.colorbar(image, ax=axis, label="share")


def name_classes(axis: Axes, rows: Sequence[object], columns: Sequence[object]) -> None:
    """Names of classes along both axes of a heat map; along one with more than 40 only
    their number.
    """
    if len(rows) <= _MOST_TICKS:
        axis.set_yticks(range(len(rows)), [truncate_label(c, 20) for c in rows])
    if len(columns) <= _MOST_TICKS:
        axis.set_xticks(
            range(len(columns)),
            [truncate_label(c, 20) for c in columns],
            rotation=45,
            ha="right",
            rotation_mode="anchor",
        )


def write_numbers(axis: Axes, values: np.ndarray, form: str, dark: np.ndarray) -> None:
    """The numbers of a small heat map in its cells, but NaN; white where the cell is
    dark.
    """
    if max(values.shape) > _MOST_NUMBERS:
        return
    for row, column in np.argwhere(np.isfinite(values)):
        color = "white" if dark[row, column] else INK
        axis.text(
            column,
            row,
            format(values[row, column], form),
            ha="center",
            va="center",
            fontsize=8,
            color=color,
        )


def parts_figure(
    results: Analysis | Sequence[Analysis | Mapping[str, Any]],
    names: Sequence[str] | None = None,
    path: str | os.PathLike | None = None,
) -> Figure:
    """Parts of the bound as stacked bars, a panel for each rung: on one scale the upper
    rungs would hide the lower ones.

    Every panel has a linear axis of its own from 0, so the length of a part is its
    share of the rung; a bar of more than six times the median is cut, and marked. The
    number beside a bar is its sum; `report.parts.rung_parts` says what adds up to what.
    Marks show the target loss and what guessing costs. Figures are the held-out ones
    where there are some.

    Args:
      results: one or several analyses, or rows of a scan.
      names: a name for each; targets, or source and target where sources differ, when
        None.

    Raises:
      ValueError: for none, another number of names, or where no rung is finite.
    """
    rows = list(results) if isinstance(results, Sequence) else [results]
    if not rows:
        raise ValueError("results: it is empty; give an analysis, or several")
    names = _pair_names(rows) if names is None else list(names)
    if len(names) != len(rows):
        raise ValueError(
            f"names: found {len(names)} for {len(rows)} results; give one for each"
        )
    bounds = [
        row if isinstance(row, Mapping) else headline_bound(row)[0] for row in rows
    ]
    parts = [rung_parts(bound) for bound in bounds]
    rungs = [rung for rung in RUNGS if any(rung in found for found in parts)]
    if not rungs:
        raise ValueError("results: no rung is finite, so nothing can be stacked")
    columns = 1 if len(rows) == 1 or len(rungs) == 1 else 2
    lines = -(-len(rungs) // columns)
    height = lines * (0.3 * len(rows) + 0.95) + 0.8
    figure = new_figure(
        figsize=(7.5 if columns == 1 else 10.5, height), layout="constrained"
    )
    axes = figure.subplots(lines, columns, squeeze=False)
    for place, (axis, rung) in enumerate(zip(axes.flat, rungs, strict=False)):
        _draw_rung(axis, rung, parts, bounds)
        named = place % columns == 0 and len(rows) > 1
        axis.set_yticks(
            range(len(rows)),
            [truncate_label(name, 38) for name in names] if named else [""] * len(rows),
        )
    for axis in axes.flat[len(rungs) :]:
        axis.set_axis_off()
    axes[-1, 0].set_xlabel("nats; every panel has its own scale")
    handles = {
        text: handle
        for axis in axes.flat
        for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=9,
    )
    return write_figure(figure, path)


def _draw_rung(
    axis: Axes, rung: str, parts: list[dict[str, dict[str, float]]], bounds: list[Any]
) -> None:
    """The bars of one rung; rows in which it is not finite say so."""
    there = np.array([rung in found for found in parts])
    places, ends = np.flatnonzero(there), np.zeros(len(parts))
    for part in next(found[rung] for found in parts if rung in found):
        sizes = np.array([found[rung][part] for found in parts if rung in found])
        axis.barh(
            places,
            sizes,
            left=ends[there],
            height=0.6,
            color=_COLOURS[part],
            label=part,
        )
        ends[there] += sizes
    rows, marks = np.arange(len(parts)), 0.0
    for text, name, color in (
        ("target loss", "target_loss", INK),
        ("guessing, H(p_T)", "prior_entropy", "#cc3311"),
    ):
        values = np.array([figure_of(bound, name) for bound in bounds])
        axis.vlines(values, rows - 0.4, rows + 0.4, color=color, lw=2, label=text)
        marks = float(np.nanmax([marks, *values]))
    # One bar of another size must not hide all others: it is cut, and marked.
    usual = max(marks, _CUT * float(np.median(ends[there])))
    cut = np.flatnonzero(ends > 1.2 * usual)
    most = usual if len(cut) else max(marks, float(ends.max()))
    if len(cut):
        look = {"color": INK, "ms": 9, "ls": "none", "clip_on": False, "zorder": 5}
        axis.plot(
            np.full(len(cut), most), cut, ">", label="cut: see the number", **look
        )
    for row, total in enumerate(ends):
        text = short(total) if there[row] else "not certified"
        axis.text(
            1.03,
            row,
            text,
            transform=axis.get_yaxis_transform(),
            va="center",
            fontsize=9,
        )
    axis.set_xlim(0, most if len(cut) else 1.02 * most)
    axis.set_ylim(len(parts) - 0.4, -0.6)
    axis.set_title(
        f"{rung} ({DISTRIBUTION}: {DISTRIBUTION_OF[rung]})", fontsize=9, loc="left"
    )
    remove_spines(axis)


def _pair_names(rows: Sequence[Analysis | Mapping[str, Any]]) -> list[str]:
    ends = [
        (str(row["source"]), str(row["target"]))
        if isinstance(row, Mapping)
        else (row.source_name, row.target_name)
        for row in rows
    ]
    several = len({source for source, _ in ends}) > 1
    return [f"{source} to {target}" if several else target for source, target in ends]


def convergence_figure(
    result: Analysis, path: str | os.PathLike | None = None
) -> Figure:
    """How the descent went: objective on batches and on the validation part, nats, and
    the norm of the gradient.

    A line for each restart; the step whose parameters were kept is marked.

    Raises:
      ValueError: for an analysis that was solved in closed form, or in which nothing
        was learned.
    """
    if "info_objective" not in result.info:
        raise ValueError(
            f"result: nothing was iterated ({result.stopped}), so there is no "
            "convergence to show"
        )
    objective = np.atleast_2d(result.info["info_objective"])
    every = VALIDATION_INTERVAL if "info_validation" in result.info else 1
    steps = every * np.arange(1, objective.shape[1] + 1)
    norms = result.info.get("info_grad_norm")
    figure = new_figure(figsize=(7, 3.2 if norms is None else 5), layout="constrained")
    axes = figure.subplots(1 if norms is None else 2, 1, sharex=True, squeeze=False)[
        :, 0
    ]
    validation = result.info.get("info_validation")
    kept = int(np.nanargmin(result.info["validation"])) if validation is not None else 0
    # What was kept is drawn last, on top of the other starts.
    for run in sorted(range(len(objective)), key=lambda run: run == kept):
        look: dict[str, Any] = {"lw": 1.8} if run == kept else {"lw": 0.7, "alpha": 0.5}

        def label(text):
            return text if run == kept else None

        axes[0].plot(
            steps,
            objective[run],
            color=SOURCE,
            label=label("on batches, mean of 10 steps" if every > 1 else "objective"),
            **look,
        )
        if validation is not None:
            axes[0].plot(
                steps,
                validation[run],
                color=EXCESS,
                ls="--",
                label=label("on the validation part"),
                **look,
            )
        if norms is not None:
            axes[1].plot(steps, norms[run], color=INK, **look)
    if validation is not None:
        step = int(result.info["best_steps"][kept])
        axes[0].plot(
            step,
            result.info["validation"][kept],
            "D",
            color=INK,
            mfc="white",
            ms=7,
            zorder=3,
            label=f"kept: step {step}",
        )
    if norms is not None:
        axes[1].set_yscale("log")
        axes[1].set_ylabel("gradient norm")
    axes[0].set_ylabel(
        f"{result.config.objective} objective"
        + (", nats" if validation is not None else "")
    )
    axes[-1].set_xlabel("optimiser step")
    axes[0].legend(frameon=False, fontsize=9)
    for axis in axes:
        remove_spines(axis)
    return write_figure(figure, path)
