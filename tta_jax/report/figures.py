"""Figures (matplotlib, imported when one is drawn)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from tta_jax.archive import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tta_jax.analysis import Analysis
    from tta_jax.evaluation import Evaluation

_SOURCE, _EXCESS, _PROBE, _GUESS = "#4477aa", "#ee8866", "#222222", "#999999"


def _figure(**options: Any) -> Figure:
    """A figure of its own: a caller's pyplot, its backend and its open figures stay as they are."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("figure: matplotlib is not installed; install it with: pip install 'tta-jax[plots]'") from None
    return Figure(**options)


def _write(figure: Figure, path: str | os.PathLike | None) -> Figure:
    if path is not None:
        write_atomically(path, lambda stream: figure.savefig(stream, format="png", dpi=150, bbox_inches="tight"))
    return figure


def ranking_figure(results: list[Analysis], probe_losses: list[float], path: str | os.PathLike | None = None) -> Figure:
    """Targets by held-out target loss: the parts of `tight` as bars, probe loss and guessing as marks; a PNG at `path`."""
    height = 0.6 * len(results) + 1.6
    figure = _figure(figsize=(8, height))
    axis = figure.subplots()
    for row, (result, probe) in enumerate(zip(results, probe_losses, strict=True)):
        bound = result.bound if result.held_out is None else result.held_out.bound
        source = bound.transformed_source_loss
        label = lambda text: text if row == 0 else None
        axis.barh(row, source, color=_SOURCE, height=0.55, label=label("transformed source loss"))
        axis.barh(
            row,
            bound.tight - source,
            left=source,
            color=_EXCESS,
            height=0.55,
            label=label("distribution mismatch (tight)"),
        )
        axis.plot(
            [bound.target_loss] * 2, [row - 0.38, row + 0.38], color="black", lw=2, label=label("target loss of h'''")
        )
        axis.plot(probe, row, "D", color=_PROBE, ms=6, mfc="white", label=label("linear probe loss"))
        axis.plot(bound.prior_entropy, row, "|", color=_GUESS, ms=18, mew=2, label=label("guessing, H(p_T)"))
    axis.set_yticks(range(len(results)), [r.target_name for r in results])
    axis.invert_yaxis()
    axis.set_xlabel("nats, on held-out items")
    axis.set_title(f"Transfer from {results[0].source_name}")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.45, -0.9 / height), ncols=3)
    return _write(figure, path)


def analysis_figure(result: Analysis, path: str | os.PathLike | None = None) -> Figure:
    """The chain of bounds on a log scale beside the label coupling with class names; a PNG at `path`."""
    bound = result.bound if result.held_out is None else result.held_out.bound
    joint = np.asarray(result.transforms.coupling)
    width = min(4 + 0.3 * joint.shape[1], 14)
    figure = _figure(figsize=(5.5 + width, max(3.2, min(1.6 + 0.3 * joint.shape[0], 10))))
    left, right = figure.subplots(1, 2, width_ratios=[5, width])
    names = ["target loss", "tight", "oscillation", "lipschitz", "theorem"]
    values = [bound.target_loss, bound.tight, bound.oscillation, bound.lipschitz, bound.theorem]
    finite = [v if np.isfinite(v) else 0 for v in values]
    colors = ["black", *[_SOURCE if v < bound.prior_entropy else _GUESS for v in values[1:]]]
    left.barh(names, finite, color=colors)
    for row, value in enumerate(values):
        text = f" {value:.2f}" if np.isfinite(value) else " not certified"
        left.text(finite[row] if finite[row] > 0 else bound.prior_entropy / 10, row, text, va="center", fontsize=9)
    left.axvline(bound.prior_entropy, color=_EXCESS, lw=1.5)
    left.text(bound.prior_entropy, -0.75, "guessing", color=_EXCESS, ha="center", fontsize=9)
    left.set_xscale("log")
    left.set_xlim(right=max([bound.prior_entropy, *finite]) * 4)
    left.invert_yaxis()
    left.set_xlabel("nats" + ("" if result.held_out is None else ", held out"))
    left.spines[["top", "right"]].set_visible(False)
    shares = joint / np.maximum(joint.sum(1, keepdims=True), 1e-300)
    image = right.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    if max(joint.shape) <= 40:
        right.set_yticks(range(joint.shape[0]), [str(c) for c in result.target_classes])
        right.set_xticks(range(joint.shape[1]), [str(c) for c in result.source_classes], rotation=45, ha="right")
    right.set_ylabel(f"{result.target_name} (target class)")
    right.set_xlabel(f"{result.source_name} (source class)")
    figure.colorbar(image, ax=right, label="share of the target class")
    return _write(figure, path)


def evaluation_figure(
    result: Evaluation, statistic: str = "weighted_tau", path: str | os.PathLike | None = None
) -> Figure:
    """Scores, best on top: the mean of a statistic with its interval, every target as a dot; a PNG at `path`."""
    rows = [row for row in result.table(statistic) if np.isfinite(row[statistic])]
    figure = _figure(figsize=(7, 0.32 * len(rows) + 1.3))
    axis = figure.subplots()
    for place, row in enumerate(rows):
        color = _EXCESS if row["kind"] == "baseline" else _SOURCE
        values = result.estimates[row["score"]][statistic].per_target
        if len(result.targets) > 1:
            axis.plot(values, np.full(len(values), place), "o", color=color, alpha=0.5, ms=4, mec="none")
        if np.isfinite(row["low"]):
            axis.plot([row["low"], row["high"]], [place, place], color=color, lw=1)
        axis.plot(row[statistic], place, "o", color=color, ms=7)
    axis.plot([], [], "o", color=_SOURCE, label="score")
    axis.plot([], [], "o", color=_EXCESS, label="baseline")
    axis.axvline(0, color=_GUESS, lw=0.8)
    axis.set_yticks(range(len(rows)), [row["score"] + (" (pool)" if row["kind"] == "pooled" else "") for row in rows])
    axis.invert_yaxis()
    drawn = "targets and models" if result.over == "both" else result.over
    axis.set_xlabel(
        f"{statistic.replace('_', ' ')} with {result.truth_name.replace('_', ' ')}, {result.interval:.0%} over {drawn}"
    )
    axis.set_title(f"{len(result.targets)} targets, {len(result.models)} models")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(
        frameon=False,
        fontsize=9,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.5 / (0.32 * len(rows) + 1.3) - 0.06),
        ncols=2,
    )
    return _write(figure, path)
