"""The page of a choice among encoders."""

from __future__ import annotations

from tta_jax.report.figures.race import race_figure
from tta_jax.report.html.page import Page
from tta_jax.selection.choice import Choice
from tta_jax.selection.race import FLOOR


def choice_page(result: Choice, title: str | None) -> Page:
    """The page of a choice: what to take, the race, every encoder, every classifier.

    Args:
      result: of the race.
      title: in place of one that names the encoder and the data.
    """
    page = Page(title or f"Which encoder for {result.data}: {result.best}")
    page.section("Verdict").items(result.summary().splitlines())
    unit = (
        f"{result.prior_entropy:.3f} nats, what guessing by the class shares costs"
        if result.measure == "loss"
        else "the accuracy above chance"
    )
    page.section("The race")
    page.figure(
        race_figure(result),
        caption="Left: the score of each classifier on items that it had not seen, "
        f"with its {result.confidence:.0%} interval, by the items that it learned "
        "from. Right: the accuracy of each encoder's last classifier by the cost of an "
        "item.",
        alt="Encoders by score: "
        + "; ".join(
            f"{one.name} {one.rounds[-1].score:.3f}"
            for one in result.candidates
            if one.rounds
        )
        + ".",
    )
    page.table(
        result.table(),
        caption=f"Encoders, the best first. Worse: than the best, in shares of {unit}; "
        f"its ends hold at all times at a confidence of {result.confidence:.0%}",
    )
    page.text(
        "Every item was judged once, by a classifier that had learned from the items "
        f"before it, with probabilities that are {FLOOR:.0%} guessing. Encoders "
        "were compared on the same items. What is bounded is the mean of these "
        "differences, not that of classifiers that learn from all items. A linear "
        "classifier on frozen features was judged; fine-tuning may order encoders "
        "otherwise."
    )
    page.section("Every classifier")
    page.table(
        [
            {
                "encoder": one.name,
                "learned": r.learned,
                "judged": r.judged,
                "score": r.score,
                "score_low": r.score_interval[0],
                "score_high": r.score_interval[1],
                "accuracy": r.accuracy,
                "accuracy_low": r.accuracy_interval[0],
                "accuracy_high": r.accuracy_interval[1],
            }
            for one in result.candidates
            for r in one.rounds
        ],
        caption="Numbers of items learned from and judged on, with intervals for each",
    )
    if result.curve:
        page.section("More labels")
        page.table(
            [
                {
                    "labels": c.learned,
                    "score_low": c.score[1],
                    "score_high": c.score[2],
                    "accuracy_low": c.accuracy[1],
                    "accuracy_high": c.accuracy[2],
                }
                for c in result.curve
            ],
            caption=f"What {result.best} comes to if its learning curve goes on as "
            "a + b / n^c",
        )
    page.section("How it was done")
    page.items(
        [
            f"{result.seen} of {result.total} labelled items were looked at, in "
            f"{result.seconds:.0f} s.",
            f"It ended because {result.stop}.",
            f"Measure: {result.measure}; margin {result.margin:g}; confidence "
            f"{result.confidence:g}; until {result.until}.",
            *(f"Left out: {what} {why}" for what, why in result.skipped[:20]),
        ]
    )
    return page
