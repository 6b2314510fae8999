"""What the study says: rows as Parquet, tables as Markdown, figures, and one page with
all of it.

Every table is a function of rows that says in its caption what was measured on what.
Nothing here fits anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study import figures
from benchmarks.study.parts import HASHES, MADE_BY, Part, write_part
from benchmarks.study.settings import Settings
from benchmarks.study.tables import (
    RUNGS,
    Row,
    choices,
    column,
    correlation,
    correlations,
    difference,
    markdown,
    mean,
    on_scale,
    over_pairs,
    plain,
    span,
    within_targets,
)
from tta_jax._internal.files import write_atomically
from tta_jax.data.encoders import ENCODERS
from tta_jax.evaluation.regression import fit_line
from tta_jax.evaluation.score_tables import lower_is_better
from tta_jax.report import Page, score_figure, task_map_figure
from tta_jax.report.figures._style import write_figure
from tta_jax.report.task_graph import task_graph

_SCALED = ("metric_leep_scaled", "metric_nce_scaled")
TRUTHS = ("scaled_probe_loss", "chance_corrected")
SCORES = (
    "score",
    "corrected_accuracy",
    *(f"scaled_{rung}" for rung in RUNGS),
)  # of the analysis
BESIDE = (
    "scaled_free_probe_loss",
    "corrected_knn",
)  # what needs no source; k-NN sees the judged items' features


@dataclasses.dataclass(frozen=True)
class Table:
    """A table with what it says."""

    caption: str
    rows: list[Row]
    digits: int = 3


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure, and the name of its file."""

    name: str
    caption: str
    figure: Any


@dataclasses.dataclass(frozen=True)
class Section:
    title: str
    text: str
    tables: list[Table]
    figures: list[Drawing] = dataclasses.field(default_factory=list)


Rows = dict[str, list[Row]]
HASH_FILE = (
    "features.sha256"  # `sha256sum --check` reads it, in the folder of the features
)


def publish(out: Path, settings: Settings, parts: dict[str, Part]) -> Iterator[Path]:
    """Write everything; yields the files."""
    parts = {name: part for name, part in parts.items() if part.rows}
    for name, part in parts.items():
        yield write_part(out / "tables" / f"{name}.parquet", part)
    hashes = dict(
        sorted(entry for part in parts.values() for entry in part.about[HASHES].items())
    )
    yield _write(
        out / HASH_FILE, "".join(f"{value}  {name}\n" for name, value in hashes.items())
    )
    rows = {name: part.rows for name, part in parts.items()}
    sections = [section for make in SECTIONS for section in make(settings, rows)]
    for section in sections:
        for drawing in section.figures:
            path = out / "figures" / f"{drawing.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_figure(drawing.figure, path)
            yield path
    said = _said(settings, parts)
    yield _write(out / "report.md", _markdown(sections, said, rows, len(hashes)))
    page = _page(sections, said, rows)
    page.section("Configuration and data").preformatted(
        settings.path.read_text(), "configuration file"
    )
    page.table(
        [{"features": name, "SHA-256": value} for name, value in hashes.items()],
        caption="Data that were read",
    )
    page.write(out / "report.html")
    yield out / "report.html"


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda stream: stream.write(text.encode()))
    return path


_HOW = (
    "Losses are in nats, on target items that took no part in learning and source "
    "items that no head or map has learned from (an "
    "encoder that is trained on a source has). Intervals are 95 %, over draws of "
    "targets; many of them are made of the same data, "
    "so for other data intervals are wider."
)


def _said(settings: Settings, parts: dict[str, Part]) -> str:
    """How much is done, and what it was made by."""
    done = ", ".join(
        "{} {} of {}".format(name, *part.about["done"]) for name, part in parts.items()
    )
    makers: dict[str, list[str]] = {}
    for name, part in parts.items():
        seed, versions, cores, machine = (part.about[key] for key in MADE_BY)
        found = ", ".join(
            f"{package} {version}" for package, version in versions.items()
        )
        makers.setdefault(
            f"Seed {seed}; {found}; {cores} cores, {machine}.", []
        ).append(name)
    made = (
        list(makers)
        if len(makers) == 1
        else [f"{', '.join(names)}: {maker}" for maker, names in makers.items()]
    )
    return " ".join(
        [f"Done: {done or 'nothing'}.", *(made or [f"Seed {settings.seed}."])]
    )


def _failures(rows: Rows) -> list[str]:
    failed = [row for found in rows.values() for row in found if row.get("reason")]

    def names(row):
        return ", ".join(
            str(row[k]) for k in ("encoder", "source", "target", "method") if k in row
        )

    return [f"{names(row)}: {row['reason']}" for row in failed]


def _markdown(sections: list[Section], said: str, rows: Rows, hashes: int) -> str:
    lines = ["# The study", "", said, _HOW, ""]
    for section in sections:
        lines += [f"## {section.title}", "", section.text, ""]
        for table in section.tables:
            lines += [table.caption, "", markdown(table.rows, table.digits)]
        for drawing in section.figures:
            lines += [f"![{drawing.caption}](figures/{drawing.name}.png)", ""]
    if failed := _failures(rows):
        lines += ["## What failed", "", *(f"- {line}" for line in failed), ""]
    lines += [
        "## Data",
        "",
        (
            f"SHA-256 of the {hashes} files of features that were read: "
            f"[{HASH_FILE}]({HASH_FILE})."
        ),
    ]
    return "\n".join(lines) + "\n"


def _page(sections: list[Section], said: str, rows: Rows) -> Page:
    page = Page("tta_jax: the study").text(said).text(_HOW)
    for section in sections:
        page.section(section.title).text(section.text)
        for drawing in section.figures:
            page.figure(drawing.figure, caption=drawing.caption, alt=drawing.caption)
        for table in section.tables:
            page.table(table.rows, caption=table.caption, digits=table.digits)
    if failed := _failures(rows):
        page.section("What failed").items(failed)
    return page


# -- the parts -------------------------------------------------------------------------


def _groups(rows: list[Row], kind: str) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["group"].startswith(kind):
            found.setdefault(row["group"], []).append(row)
    return found


def _first(rows: list[Row]) -> list[Row]:
    """Those of the first split, on which everything was done."""
    return [row for row in rows if not row["repeat"]]


def _by_pair(rows: list[Row]) -> list[list[Row]]:
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault((row["encoder"], row["source"], row["target"]), []).append(row)
    return list(found.values())


def _scores(rows: list[Row]) -> list[str]:
    return [
        *SCORES,
        *BESIDE,
        *sorted({name for row in rows for name in row if name.startswith("metric_")}),
    ]


def _scatter(
    name: str, rows: list[Row], score: str, truth: str, by: str = "target"
) -> list[Drawing]:
    """A score against a truth; nothing where there are too few pairs."""
    x, y = column(rows, score), column(rows, truth)
    try:
        line = fit_line(x, y, [row["target"] for row in rows])
    except ValueError:
        return []
    figure = score_figure(
        x,
        y,
        [row[by] for row in rows],
        score_name=plain(score),
        truth_name=f"{plain(truth)}, chance-corrected",
        line=line,
    )
    return [
        Drawing(
            name,
            (
                f"{plain(score)} against the accuracy of a linear probe, "
                f"chance-corrected, in one split. {line.words()}."
            ),
            figure,
        )
    ]


def _map(group: str, rows: list[Row]) -> list[Drawing]:
    try:
        found = task_graph(rows)
    except ValueError:
        return []
    caption = (
        f"Tasks by relatedness ({group}): distance is 1 less the score; an arrow "
        "leads from the best source of each target."
    )
    return [
        Drawing(
            f"map-{group.removeprefix('trained ')}", caption, task_map_figure(found)
        )
    ]


def _done(rows: Rows, part: str) -> list[Row]:
    """Rows of a part that did not fail."""
    return [row for row in rows.get(part, []) if not row.get("reason")]


def _floors(pairs: list[Row]) -> Table | None:
    """What the floor under the classifier changes on items that took no part."""
    judged = [row for row in pairs if row.get("floored_loss") is not None]
    if not judged:
        return None
    rows = []
    floors = sorted({row["floor"] for row in judged})
    for floor in (*floors, None):
        mine = [row for row in judged if floor in (None, row["floor"])]
        change = np.array(
            [
                1e3
                * (row["floored_loss"] - row["unfloored_loss"])
                / row["probe_entropy"]
                for row in mine
            ]
        )
        one = mean(change, np.array([row["target"] for row in mine]))
        rows.append(
            {
                "floor": "all" if floor is None else f"{floor:.3f}",
                "pairs": len(mine),
                "change of the loss": one["value"],
                "95 %": span(one),
                "largest": float(change.max()),
            }
        )
    return Table(
        "Loss of the classifier on the other half of the items with its floor, less "
        "that without, in thousandths of H(p_T), by the floor that inner folds chose.",
        rows,
    )


STARS = ("star_directed", "star_theorem", "star_target_loss")
_EASY = 0.6  # of H(p_T): the probe's loss up to which there is something to certify


def relatedness(settings: Settings, rows: Rows) -> Iterator[Section]:
    """How related the source is: informative, in step with a probe, and silent where
    labels are shuffled.
    """
    found = [
        row | {f"scaled_{name}": 1 - row[name] / row["star_entropy"] for name in STARS}
        for row in on_scale(rows.get("relatedness", []))
        if row.get("star_entropy")
    ]
    pairs = [row for row in found if row["labels"] == "given"]
    if not pairs:
        return
    easy = [row for row in pairs if row["scaled_probe_loss"] >= 1 - _EASY]
    fewer = [row for row in pairs if row["source_classes"] < row["classes"]]
    groups = {
        "all": pairs,
        f"probe loss up to {_EASY} of H(p_T)": easy,
        "source has fewer classes": fewer,
        **_groups(pairs, ""),
    }
    shares, correlated = [], []
    for name, mine in groups.items():
        if not mine:
            continue
        share: Row = {"pairs of": name, "pairs": len(mine)}
        row: Row = {"pairs of": name, "pairs": len(mine)}
        for star in STARS:
            scaled = column(mine, f"scaled_{star}")
            share |= {
                f"{plain(star)} informative": float((scaled > 0).mean()),
                plain(star): float((1 - scaled).mean()),
            }
            one = over_pairs(mine, f"scaled_{star}", TRUTHS[0])
            row |= {plain(star): one["value"], f"{plain(star)} 95 %": span(one)}
        share["chain holds"] = f"{sum(r['holds'] for r in mine)} of {len(mine)}"
        shares.append(share)
        correlated.append(row)
    scored = [f"scaled_{name}" for name in STARS] + ["score", "scaled_free_probe_loss"]
    within = within_targets(pairs, scored, TRUTHS[0])
    shuffled = [
        {
            "labels": labels,
            "pairs": len(mine),
            **{
                f"{plain(star)} {how}": float(of(1 - column(mine, f"scaled_{star}")))
                for star in STARS[:2]
                for how, of in (("mean", np.mean), ("least", np.min))
            },
        }
        for labels in dict.fromkeys(row["labels"] for row in found)
        if (mine := [row for row in found if row["labels"] == labels])
        and labels != "given"
    ]
    tables = [
        Table(
            "Held-out bounds in the star as shares of H(p_T), and the share of pairs "
            "where they are below 1.",
            shares,
        ),
        Table(
            "Pearson correlation with the linear probe's loss on other items, both on "
            "the scale of H(p_T), over all pairs.",
            correlated,
        ),
        Table("The same within a target, mean over targets.", within),
        Table("Shares of H(p_T) where labels are shuffled.", shuffled),
    ]
    for group in settings.trained:
        mine = [row for row in pairs if row["group"] == f"trained {group.name}"]
        right = {
            target: sources
            for target, sources in group.related.items()
            if any(row["target"] == target for row in mine)
        }
        if mine and right:
            tables.append(
                Table(
                    f"Which source-trained encoder, {group.name}: the related source "
                    "is first, and what the choice costs, by the probe's loss.",
                    choices(mine, scored, TRUTHS[0], right),
                )
            )
    if floors := _floors(pairs):
        tables.append(floors)
    yield Section(
        "How related is the source?",
        "Source loss and distance in the star (docs/theory.md, section 5.2), on "
        "held-out items of both tasks; `directed` and `theorem` each in the star in "
        "which it was least on the items that learn. Nothing was chosen on these "
        "pairs' held-out items.",
        tables,
    )


def tightness(settings: Settings, rows: Rows) -> Iterator[Section]:
    """(g): how tight."""
    pairs = _first(on_scale(rows.get("pairs", [])))
    if not pairs:
        return
    table = []
    for name, mine in {"all": pairs, **_groups(pairs, "")}.items():
        row: Row = {
            "pairs of": name,
            "pairs": len(mine),
            "chain holds": f"{sum(r['holds'] for r in mine)} of {len(mine)}",
        }
        row |= {
            "tight informative": f"{sum(r['informative'] for r in mine)} of {len(mine)}"
        }
        able = [r for r in mine if r["probe_score"] > 0]
        row |= {
            (
                "where a probe beats guessing"
            ): f"{sum(r['informative'] for r in able)} of {len(able)}"
        }
        row |= {
            k.replace("_", " "): float(_shares(mine, k).mean())
            for k in ("target_loss", *RUNGS)
        }
        table.append(row)
    tables = [
        Table(
            (
                "Held-out bounds as shares of H(p_T), mean over pairs; below 1 says "
                "more than guessing."
            ),
            table,
        )
    ]
    tables += list(_beside_published(rows))
    text = (
        "The chain `target_loss <= tight <= oscillation <= lipschitz <= theorem`, "
        "certified in float64 on held-out items; "
        "objective `score`. `tight` is computed from the target losses: a diagnosis of "
        "how far they lie above those of the "
        "transformed source, not a prediction. The rungs above it know the target "
        "through transport alone. `theorem` is "
        "`lipschitz` wherever every target class has one source class: its source loss "
        "and label mismatch are then exact. A probe "
        "does not beat guessing where labels are shuffled, and on few items of many "
        "classes."
    )
    drawn = Drawing(
        "chain",
        (
            "The held-out chain of every pair on the scale of guessing; black lines "
            "are medians."
        ),
        figures.chain(pairs),
    )
    yield Section("How tight are the bounds?", text, tables, [drawn])
    if over := _done(rows, "sizes"):
        yield _sizes(over)


def _shares(rows: list[Row], name: str) -> np.ndarray:
    """Of H(p_T); a rung that has no figure is infinite."""
    share = column(rows, name) / column(rows, "prior_entropy")
    return np.where(np.isnan(share), np.inf, share)


def _beside_published(rows: Rows) -> Iterator[Table]:
    found = [row for row in _done(rows, "published") if row["setting"] == "LearnedAll"]
    if not found:
        return
    table = [
        {
            "source": row["source"],
            "target": row["target"],
            "target loss": row["ours_target_loss"],
            **{rung: row[f"ours_{rung}"] for rung in RUNGS},
            "oscillation, minimised": row["descent_oscillation"],
            "its target loss": row["descent_target_loss"],
            "published: target loss": row["target_loss"],
            "bound": row["bound"],
            "certified": row["certified_bound"],
            "H(p_T)": row["ours_prior_entropy"],
        }
        for row in found
    ]

    def share(ours, its):
        return float(column(found, ours).mean() / column(found, its).mean())

    yield Table(
        "`analyze` and the published algorithm (NumPy, POT) on the same items of both "
        "tasks, learned on and held out. Of the mean "
        "published bound, which takes its constant from samples and certifies nothing, "
        f"`tight` is {share('ours_tight', 'bound'):.3f}; "
        "certified `oscillation`, where that is what is minimised, "
        f"{share('descent_oscillation', 'bound'):.2f}, and "
        f"{share('descent_oscillation', 'certified_bound'):.2f} of the published bound "
        "with a constant that certifies it.",
        table,
    )


def _sizes(rows: list[Row]) -> Section:
    table = [
        {
            "source": row["source"],
            "target": row["target"],
            "objective": row["objective"],
            "target items": row["items"],
            **{
                k.replace("_", " "): float(_shares([row], k)[0])
                for k in ("target_loss", *RUNGS)
            },
            "informative": ", ".join(row["informative_rungs"]) or "none",
            "seconds": row["seconds"],
        }
        for row in rows
    ]
    text = (
        "Held-out bounds as shares of H(p_T), over the number of labelled target "
        "items (learned on and held out together)."
    )
    drawn = Drawing(
        "sizes",
        "Held-out bounds over the number of labelled target items; the lowest over "
        "objectives "
        f"({', '.join(dict.fromkeys(row['objective'] for row in rows))}), chosen where "
        "it is shown.",
        figures.sizes(rows),
    )
    return Section(
        "When do the upper rungs become informative?",
        text,
        [Table("Below 1 says more than guessing.", table)],
        [drawn],
    )


_PAPERS = ("FixedAll", "LearnedA", "LearnedAll")


def ablations(rows: Rows) -> dict[str, list[Row]]:
    """Mean bound of every setting, over the pairs that have them all, by descent and by
    the published algorithm.
    """
    tables: dict[str, list[Row]] = {}
    for part, bound, what in (
        (
            "ablation",
            "oscillation",
            "Descent on the oscillation bound; held out, certified",
        ),
        (
            "published",
            "bound",
            "The published algorithm and its (uncertified) bound, on unseen items",
        ),
    ):
        found = _done(rows, part)
        pairs: dict[tuple, dict[str, Row]] = {}
        for row in found:
            pairs.setdefault((row["encoder"], row["target"]), {})[row["setting"]] = row
        # The paper's three in its order, then ours.
        settings_of = sorted(
            dict.fromkeys(row["setting"] for row in found),
            key=lambda name: name not in _PAPERS,
        )
        whole = {key: of for key, of in pairs.items() if set(of) == set(settings_of)}
        if not whole:
            continue
        targets = np.array([key[1] for key in whole])
        table, before = [], None
        for name in settings_of:
            values = column([of[name] for of in whole.values()], bound)
            one = mean(values, targets)
            gain = mean(values * np.nan if before is None else before - values, targets)
            table.append(
                {
                    "setting": name,
                    "pairs": one["pairs"],
                    "mean bound": one["value"],
                    "low": one["low"],
                    "high": one["high"],
                    "target loss": float(
                        np.mean([of[name]["target_loss"] for of in whole.values()])
                    ),
                    "less than before": gain["value"],
                    "less, 95 %": span(gain),
                    "lower in": "-"
                    if before is None
                    else f"{int((values < before).sum())} of {len(values)}",
                }
            )
            before = values
        tables[what] = table
    return tables


def ablation(settings: Settings, rows: Rows) -> Iterator[Section]:
    """(a): FixedAll, LearnedA, LearnedAll."""
    if tables := ablations(rows):
        said = "Nats; differences are paired, each setting with the one above it."
        found = [Table(f"{what}. {said}", table) for what, table in tables.items()]
        drawn = Drawing(
            "ablation",
            "Mean bounds of the settings of the ablation.",
            figures.ablation(tables),
        )
        text = (
            "Ordered pairs, encoder trained on the source. FixedAll learns nothing: "
            "source classes are assigned at random and "
            "the map is the identity. LearnedA learns the map, LearnedAll class prior "
            "and label mixing as well. Beside them "
            "`labels assigned`, which learns the map for source classes assigned by "
            "cost."
        )
        yield Section(
            "Does it help to learn the transformations?", text, found, [drawn]
        )


_COMPARED = (
    "corrected_accuracy",
    "scaled_tight",
    "scaled_free_probe_loss",
    "metric_knn_corrected",
    "metric_logme",
    "metric_leep_scaled",
    "metric_h_score",
)


def agreement(settings: Settings, rows: Rows) -> Iterator[Section]:
    """(b), (c) and (e) in one look."""
    groups = _groups(on_scale(rows.get("pairs", [])), "")
    if not groups:
        return
    tables = []
    for truth in TRUTHS:
        table = []
        for name, mine in groups.items():
            one = over_pairs(mine, "score", truth)
            row: Row = {
                "pairs of": name,
                "pairs": one["pairs"],
                "score": one["value"],
                "95 %": span(one),
            }
            row |= {
                plain(score): over_pairs(mine, score, truth)["value"]
                for score in _COMPARED
            }
            table.append(row)
        tables.append(
            Table(
                f"Pearson correlation with the {plain(truth)}, over all pairs.", table
            )
        )
    drawn = Drawing(
        "agreement",
        (
            "Score against the accuracy of a linear probe on other items, "
            "chance-corrected; one point a pair, lines are least squares."
        ),
        figures.agreement({name: _first(mine) for name, mine in groups.items()}),
    )
    text = (
        "What the analysis says from one half of a target's items, and what a linear "
        "probe of the same half does on the other. "
        "Loss of the probe on the scale of guessing, `1 - loss / H(p_T)`; accuracy "
        "corrected for chance, `(accuracy - share) / "
        "(1 - share)` with the share of the largest class."
    )
    yield Section(
        "Does the score tell how well a target will be served?", text, tables, [drawn]
    )


def frozen(settings: Settings, rows: Rows) -> Iterator[Section]:
    """(b) and (e): every frozen encoder x every target."""
    for name, mine in _groups(on_scale(rows.get("pairs", [])), "frozen").items():
        scores = _scores(mine)
        table = correlations(mine, scores, TRUTHS)
        targets, splits = (
            np.array([row[k] for row in mine]) for k in ("target", "repeat")
        )
        halves: Row = {
            "score": "(the two halves of what is judged)",
            "pairs": len(_first(mine)),
        }
        for truth, half in zip(
            TRUTHS, ("probe_score", "chance_corrected"), strict=True
        ):
            one = correlation(
                *(column(mine, f"{half}_half_{k}") for k in (1, 2)), targets, splits
            )
            halves |= {plain(truth): one["value"], f"{plain(truth)} 95 %": span(one)}
        means = [
            [np.mean([r[k] for r in of]) for k in ("score", *TRUTHS)]
            for of in _by_pair(mine)
        ]
        of_means = [
            float(np.corrcoef(column_of, np.array(means)[:, 0])[0, 1])
            for column_of in np.array(means)[:, 1:].T
        ]
        text = (
            f"{len({r['encoder'] for r in mine})} encoders, {len(set(targets))} "
            "targets. Scores see one half of a target's items, "
            "the linear probe learns on it and is judged on the other. Correlations "
            f"are means over {settings.repeats} such splits "
            "(one for the upper rungs and the slowest scores), other figures are of "
            "the first. Scores on the scale of guessing or "
            "of chance are marked; the others are as their papers have them, which "
            "costs them something where targets "
            f"have from {min(r['classes'] for r in mine)} to "
            f"{max(r['classes'] for r in mine)} classes. "
            "Means over the splits have less noise, though what is judged in one split "
            "is seen in another: of them "
            f"the correlation of `score` is {of_means[0]:.3f} with the loss and "
            f"{of_means[1]:.3f} with the accuracy."
        )
        tables = [
            Table("Pearson correlation over encoder x target pairs.", [halves, *table]),
            _less(mine),
        ]
        tables += list(_tuned(rows, name, mine))
        tables += list(_ranking(_first(mine), scores, over="both"))
        short = name.removeprefix("frozen ")
        drawn = _scatter(
            f"score-{short}", _first(mine), "score", "chance_corrected", by="encoder"
        )
        yield Section(
            f"Encoders that never saw the source: {short}", text, tables, drawn
        )


def _less(mine: list[Row]) -> Table:
    """`score` against each of the others that README compares it with."""
    table = []
    for other in _COMPARED:
        row: Row = {"score less": plain(other)}
        for truth in TRUTHS:
            one = difference(mine, "score", other, truth)
            row |= {
                "pairs": one["pairs"],
                plain(truth): one["value"],
                f"{plain(truth)} 95 %": span(one),
            }
        table.append(row)
    return Table(
        (
            "Pearson of `score` less that of others, paired: the same pairs and draws "
            "for both."
        ),
        table,
    )


def _tuned(rows: Rows, group: str, pairs: list[Row]) -> Iterator[Table]:
    known = {(row["encoder"], row["target"]): row for row in _first(pairs)}
    found = []
    for one in _done(rows, "finetune"):
        mine = known.get((one["encoder"], one["target"]))
        if one["group"] == group and mine is not None:
            found.append(mine | one)
    if len(found) > 2:  # a line goes through any two
        scores = [*TRUTHS, *_scores(found)]
        gain = column(found, "tuned_corrected") - column(found, "chance_corrected")
        yield Table(
            f"Pearson correlation with full fine-tuning, {len(found)} pairs. It starts "
            "from a linear probe, and for "
            f"{sum(row['epoch'] == 0 for row in found)} of them no epoch was better on "
            "the items that decide: no weight moved. Its "
            f"corrected accuracy less that of the probe is {gain.mean():.3f} on "
            f"average, and higher for {int((gain > 0).sum())}.",
            correlations(found, scores, ("tuned_score", "tuned_corrected")),
        )
        if len({row["encoder"] for row in found}) > 2:
            yield Table(
                (
                    "Within a target, mean over targets: Pearson with the corrected "
                    "accuracy of full fine-tuning."
                ),
                within_targets(found, scores, "tuned_corrected"),
            )


def _label(name: str) -> str:
    """A score's name in a ranking: metrics have theirs, which `evaluate` knows; none by
    which it would be ranked from the least.
    """
    said = name.removeprefix("metric_") if name.startswith("metric_") else plain(name)
    label = f"{said} (scaled)" if lower_is_better(said) else said
    assert not lower_is_better(label), label
    return label


def _ranking(pairs: list[Row], scores: list[str], over: str) -> Iterator[Table]:
    """Choice of an encoder for each target."""
    import tta_jax as tta

    if len({row["encoder"] for row in pairs}) < 3:
        return
    truth = [
        {
            "encoder": r["encoder"],
            "target": r["target"],
            "accuracy": r["probe_accuracy"],
        }
        for r in pairs
    ]
    # Within a target a scale changes nothing; k-NN on the judged items would be a
    # second truth.
    names = [
        name
        for name in scores
        if name not in ("corrected_knn", "metric_knn_corrected", *_SCALED)
    ]
    table = [
        {
            "encoder": r["encoder"],
            "target": r["target"],
            "metric": _label(name),
            "value": r.get(name),
        }
        for r in pairs
        for name in names
        if r.get(name) is not None
    ]
    sizes = {
        name: ENCODERS[name].parameters
        for name in {row["encoder"] for row in pairs}
        if name in ENCODERS
    }
    found = tta.evaluate(table, truth, over=over, parameters=sizes or None)
    rows = []
    for row in found.table("weighted_tau"):
        if row["kind"] == "baseline" and np.isnan(
            row["weighted_tau"]
        ):  # encoders of one size
            continue
        per = found.estimates[row["score"]]["regret_1"].per_target
        right = f"{int((per <= 1e-12).sum())} of {int(np.isfinite(per).sum())}"
        rows.append(
            {
                "score": row["score"].replace("_", " "),
                "kind": row["kind"],
                "weighted tau": row["weighted_tau"],
                "95 %": span(row),
                "regret, accuracy": row["regret_1"],
                "best encoder found": right,
            }
        )
    drawn = {"both": "targets and encoders", "targets": "targets"}[over]
    yield Table(
        "Ranking for each target; truth is the linear probe's accuracy. Mean over "
        f"targets, draws of {drawn}. Scores that are "
        "undefined on some targets come last.",
        rows,
    )


def trained(settings: Settings, rows: Rows) -> Iterator[Section]:
    """(c): choice of source."""
    related = {f"trained {group.name}": group.related for group in settings.trained}
    for name, mine in _groups(on_scale(rows.get("pairs", [])), "trained").items():
        scores = _scores(mine)
        few_items = [
            f"{group.slow_items:,}"
            for group in settings.trained
            if name == f"trained {group.name}"
        ]
        text = (
            f"{len({r['source'] for r in mine})} sources, each with an encoder trained "
            "on it, "
            f"{len({r['target'] for r in mine})} targets. The source-free ridge probe "
            "and the metrics that know no source see the "
            "same features. Correlations and choices are means over "
            f"{settings.repeats} splits of a target's items (one for the "
            "upper rungs and the slowest scores), rankings are of the first. The "
            f"slowest scores see fewer source items (at most {', '.join(few_items)})."
        )
        chosen = choices(
            mine,
            [*scores, "chance_corrected"],
            "chance_corrected",
            related.get(name, {}),
        )
        tables = [
            Table(
                "Targets with a known answer: whether the related source is put first, "
                "and what the choice costs "
                "(chance-corrected accuracy of a linear probe).",
                chosen,
            ),
            Table(
                (
                    "Which score tells which encoder serves a target: Pearson within a "
                    "target, mean over targets."
                ),
                within_targets(mine, scores, "chance_corrected"),
            ),
            Table(
                (
                    "The same without the encoder that was trained on the target's own "
                    "data, which is easily told."
                ),
                within_targets(
                    [row for row in mine if row["source"] != row["target"]],
                    scores,
                    "chance_corrected",
                ),
            ),
            Table("Pearson over all pairs.", correlations(mine, scores, TRUTHS)),
            *_divided(_first(mine)),
            *_tuned(rows, name, mine),
            *_ranking(_first(mine), scores, over="targets"),
        ]
        yield Section(
            f"Choice of source: {name.removeprefix('trained ')}",
            text,
            tables,
            _map(name, _first(mine)),
        )


def _divided(pairs: list[Row]) -> Iterator[Table]:
    """What it brings to divide the classes of a source that has too few."""
    mine = [row for row in pairs if row.get("undivided_score") is not None]
    if mine:
        unit, average = (
            column(mine, "prior_entropy"),
            lambda values: float(np.mean(values)),
        )
        table = [
            {
                "source classes": "as they are",
                "score": average(column(mine, "undivided_score")),
                "tight / H(p_T)": average(column(mine, "undivided_tight") / unit),
            },
            {
                "source classes": "divided",
                "score": average(column(mine, "score")),
                "tight / H(p_T)": average(column(mine, "tight") / unit),
            },
            {
                "source classes": "(ridge probe, no source)",
                "score": average(column(mine, "scaled_free_probe_loss")),
                "tight / H(p_T)": None,
            },
        ]
        yield Table(
            f"Sources with fewer classes than the target, {len(mine)} pairs. Wherever "
            "target labels are seen "
            "the analysis divides their classes; published scores, and scores without "
            "target labels, see the source as it is.",
            table,
        )


def unlabelled(settings: Settings, rows: Rows) -> Iterator[Section]:
    """(d): none."""
    found = on_scale(rows.get("free", []))
    for name, mine in _groups(found, "trained").items():
        scores = sorted(
            {column for row in mine for column in row if column.startswith("free_")}
            - {"free_probe_loss"}
        )
        tables = []
        for fresh, what in (
            (
                True,
                (
                    "Targets (other classes and labels, mostly of the same items) "
                    "never looked at while the score was made"
                ),
            ),
            (False, "The other targets"),
        ):
            part = [row for row in mine if row["fresh"] is fresh]
            if part:
                tables.append(
                    Table(
                        f"{what}: Pearson with the linear probe.",
                        correlations(part, scores, TRUTHS[::-1]),
                    )
                )
                tables.append(
                    Table(
                        f"{what}: Pearson within a target, mean over targets.",
                        within_targets(part, scores, "chance_corrected"),
                    )
                )
        text = (
            "Encoder trained on the source, labels of the source alone. Targets "
            "with shuffled labels are left out."
        )
        short = name.removeprefix("trained ")
        drawn = _scatter(
            f"unlabelled-{short}",
            [row for row in mine if row["fresh"]],
            "free_structure",
            "chance_corrected",
        )
        yield Section(f"Without target labels: {short}", text, tables, drawn)


def few_labels(settings: Settings, rows: Rows) -> Iterator[Section]:
    """(d): few labels."""
    few = _done(rows, "few")
    truth = {
        (r["group"], r["encoder"], r["target"]): r
        for r in _first(on_scale(rows.get("pairs", [])))
    }
    tables = []
    for name, mine in _groups(few, "frozen").items():
        losses, said = [], []
        for number in settings.few:
            part = []
            for row in mine:
                whole = truth.get((row["group"], row["encoder"], row["target"]))
                if row["labels"] == number and whole is not None:
                    part.append(
                        row
                        | {
                            "chance_corrected": whole["chance_corrected"],
                            "unit": whole["probe_entropy"],
                        }
                    )
            if not part:
                continue
            targets, y = (
                np.array([row["target"] for row in part]),
                column(part, "chance_corrected"),
            )
            which: Row = {"labels a class": number, "pairs": len(part)}
            own, probe = (
                column(part, loss) / column(part, "unit")
                for loss in ("loss", "probe_loss")
            )
            held, free = (
                column(part, loss) / column(part, "unit")
                for loss in ("held_loss", "free_probe_loss")
            )
            losses.append(
                which
                | {"h'''": float(np.mean(own)), "median": float(np.median(own))}
                | {
                    "linear probe": float(np.mean(probe)),
                    "its median": float(np.median(probe)),
                }
                | {"h''' lower in": f"{np.sum(own < probe)} of {len(part)}"}
                | {
                    "h''', held out": float(np.mean(held)),
                    "ridge probe, no source, held out": float(np.mean(free)),
                }
                | {"h''' lower in it": f"{np.sum(held < free)} of {len(part)}"}
            )
            scores = (
                "score",
                "free_probe_score",
                *(f"metric_{m}" for m in settings.few_metrics),
            )
            names = (
                "score",
                "ridge probe, no source",
                *(plain(f"metric_{m}") for m in settings.few_metrics),
            )
            said.append(
                which
                | {
                    k: correlation(column(part, s), y, targets)["value"]
                    for k, s in zip(names, scores, strict=True)
                }
            )
        if not losses:
            continue
        of = name.removeprefix("frozen ")
        tables.append(
            Table(
                (
                    f"{of}: losses over H(p T), on the judged half or on those of the "
                    "few that were left out."
                ),
                losses,
            )
        )
        tables.append(
            Table(
                (
                    f"{of}: Pearson's r of what the few labels say with the accuracy "
                    "of a probe of the whole seen half."
                ),
                said,
            )
        )
    if tables:
        text = (
            'At most so many of every class, drawn from the half that is seen. "Held '
            'out": learned from half of the few labels, '
            "evaluated on the others, and the reverse."
        )
        yield Section("Few target labels", text, tables)


def _method(name: str) -> str:
    """A method of `costs` as people say it."""
    said = {
        "knn": "k-NN on the judged items",
        "probe": "linear probe, decay by folds, on the judged items: the truth here",
        "metrics.linear_probe": "linear probe, out of fold",
        "analyze, all rungs, 4 folds": "analyze, all rungs, 4 folds: as in `pairs`",
    }
    return said.get(name) or plain(
        name.replace("metrics.", "metric_").replace("label_free.", "free_")
    )


def _refusals(mine: list[Row]) -> str:
    """What says nothing of such data."""
    return " ".join(
        f"{_method(row['method'])}: refused ({row['refused']})."
        for row in mine
        if row.get("refused")
    )


def costs(settings: Settings, rows: Rows) -> Iterator[Section]:
    """(f): time and memory."""
    tables = []
    for name, mine in _groups(_done(rows, "costs"), "").items():
        table = [
            {
                "method": _method(row["method"]),
                "seconds, first": row.get("seconds_first"),
                "warm": row.get("seconds_warm"),
                "GB": row.get("gb"),
            }
            for row in sorted(mine, key=lambda row: row.get("seconds_warm") or np.inf)
        ]
        about = f"{mine[0]['encoder']}, {mine[0]['source']} -> {mine[0]['target']}"
        caption = (
            f"{name.removeprefix('frozen ')} ({about}); each in a process of its "
            f"own. {_refusals(mine)}"
        )
        tables.append(Table(caption.strip(), table))
    replaced = []
    for part, seconds, label in (
        (
            "published",
            "ours_seconds",
            "analyze, on the pairs of the published algorithm",
        ),
        ("published", "descent_seconds", "the same, objective oscillation"),
        ("published", "seconds", "published algorithm, LearnedAll"),
        ("finetune", "seconds_tuned", "full fine-tuning"),
    ):
        whole = [
            row
            for row in _done(rows, part)
            if row.get("setting") in (None, "LearnedAll")
        ]
        for name, mine in _groups(whole, "").items():
            values = column(mine, seconds)
            values = values[np.isfinite(values)]
            if len(values):
                replaced.append(
                    {
                        "method": label,
                        "of": name,
                        "runs": len(values),
                        "mean seconds": float(values.mean()),
                    }
                )
    if replaced:
        tables.append(Table("What they replace.", replaced, 1))
    if tables:
        yield Section(
            "Time and memory",
            "Seconds of a first call and the fewer of two later ones, programs "
            "compiled; memory above the loaded data. On one core "
            "each where two processes share two of them.",
            tables,
        )


SECTIONS: tuple[Callable[[Settings, Rows], Iterator[Section]], ...] = (
    agreement,
    relatedness,
    tightness,
    ablation,
    frozen,
    trained,
    unlabelled,
    few_labels,
    costs,
)
