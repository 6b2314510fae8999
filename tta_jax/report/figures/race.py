"""Draw a race among encoders."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from tta_jax.report.figures._style import (
    FAINT,
    INK,
    group_colours,
    new_figure,
    place_labels,
    remove_spines,
    truncate_label,
    write_figure,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tta_jax.selection.choice import Choice

_MOST = 12  # encoders that are drawn


def race_figure(result: Choice, path: str | os.PathLike | None = None) -> Figure:
    """Draw the score of every encoder's classifiers with their intervals over the items
    learned from, the best one's curve continued; and accuracy against cost.

    Args:
      result: of a race; its best 12 encoders are drawn.
      path: where to write it, if anywhere.
    """
    drawn = [one for one in result.candidates[:_MOST] if one.rounds]
    colours = group_colours([one.name for one in drawn])
    figure = new_figure(figsize=(10, 3.8), layout="constrained")
    race, cost = figure.subplots(1, 2, width_ratios=(3, 2))
    for place, one in enumerate(drawn):
        shift = 1 + 0.03 * (place - (len(drawn) - 1) / 2)
        learned = np.array([r.learned for r in one.rounds]) * shift
        score = np.array([r.score for r in one.rounds])
        low, high = np.array([r.score_interval for r in one.rounds]).T
        colour = colours[one.name]
        race.plot(
            learned,
            score,
            "-o",
            color=colour,
            ms=4,
            lw=2 if one.name == result.best else 1,
            label=truncate_label(one.name),
        )
        race.vlines(learned, low, high, color=colour, lw=0.8, alpha=0.7)
    if result.curve:
        best = drawn[0]
        x = [best.rounds[-1].learned, *(c.learned for c in result.curve)]
        middle = [best.rounds[-1].score, *(c.score[0] for c in result.curve)]
        race.plot(x, middle, ":", color=colours[best.name])
        race.fill_between(
            x[1:],
            [c.score[1] for c in result.curve],
            [c.score[2] for c in result.curve],
            color=colours[best.name],
            alpha=0.12,
            lw=0,
        )
    race.set_xscale("log")
    ticks = sorted({r.learned for one in drawn for r in one.rounds})
    ticks += [c.learned for c in result.curve]
    race.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=8, rotation=45)
    race.minorticks_off()
    race.axhline(0, color=FAINT, lw=0.8)
    race.set_ylim(bottom=max(race.get_ylim()[0], -0.5), top=1)
    race.set_xlabel("items learned from (dotted: continued)")
    race.set_ylabel("score: 1 perfect, 0 guessing")
    race.legend(frameon=False, fontsize=8, loc="lower right")
    points = []
    for one in drawn:
        last = one.rounds[-1]
        each = one.cost * 1000
        cost.vlines(each, *last.accuracy_interval, color=colours[one.name], lw=1)
        cost.plot(each, last.accuracy, "o", color=colours[one.name])
        points.append((each, last.accuracy))
    cost.set_xlabel("milliseconds an item")
    cost.set_ylabel("accuracy of its last classifier")
    cost.margins(x=0.25)
    for axis in (race, cost):
        remove_spines(axis)
        axis.tick_params(colors=INK)
    place_labels(cost, np.array(points), [truncate_label(one.name) for one in drawn])
    figure.suptitle(
        truncate_label(
            f"{result.data}: {result.seen} of {result.total} items, take {result.best}",
            90,
        ),
        fontsize=10,
    )
    return write_figure(figure, path)
