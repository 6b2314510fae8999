"""Pages of a scan and of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tta_jax.analysis.decomposition import rung_parts
from tta_jax.bounds.chain import RUNGS
from tta_jax.evaluation.evaluate import MARKS, Evaluation
from tta_jax.report.figures.scores import evaluation_figure
from tta_jax.report.html.page import Page
from tta_jax.report.html.sections import (
    PERCENT,
    add_map,
    add_parts,
    add_provenance,
    add_scatter,
    as_rows,
    trimmed,
)
from tta_jax.scans.result import ScanResult

_MOST_MAPPED = 30  # tasks on a map
_MOST_FAILED = 50  # rows that failed
_MOST_POINTS = 500  # of a scan in a scatter
_READ = ("pair", "encoder", "source", "target", "stage", "score", "probe_accuracy")
_SHOWN = (
    "rank",
    "target",
    "source",
    "encoder",
    "stage",
    "score",
    "score_low",
    "score_high",
    "target_loss",
    "target_accuracy",
    "tight",
    "directed",
    "oscillation",
    "relatedness",
    "reweighted_source_loss",
    "label_mismatch",
    "prior_entropy",
    "probe_loss",
    "probe_accuracy",
)


def scan_page(result: ScanResult, title: str | None, top: int) -> Page:
    """The page of a scan: best pairs, each target's best source, a map, failures;
    bounded however many pairs there are.
    """
    manifest, counts = result.manifest, result.counts()
    page = Page(
        title
        or (
            f"Scan of {len(manifest['sources'])} sources and "
            f"{len(manifest['targets'])} targets"
        )
    )
    page.section("Verdict").items(result.summary().split("\n"))
    best, points = _best_of_targets(result)
    ranked = result.rank(top=top)
    if ranked:
        one = ranked[0]
        page.text(
            f"Best of all: {pair_of(one)}, score {one['score']:.3f}. The score is the "
            "share of label uncertainty that the "
            "transferred classifier removes on held-out items: 1 perfect, 0 guessing."
        )
    else:
        page.text("No pair has figures yet.")
    where = result.path.rstrip("/").rpartition("/")[2]
    page.text(
        f"Tables here have at most {top} rows of pairs or targets, and {_MOST_FAILED} "
        f"of failures; all {len(result):,} pairs are in {where}/pairs."
    )
    page.section("Best pairs").table(
        trimmed(
            [{name.replace("_", " "): row[name] for name in _SHOWN} for row in ranked]
        ),
        caption=(
            f"The best {len(ranked)} pairs by score, refined ones first; nats, held out"
        ),
        formats=PERCENT,
    )
    refined = _refined(result, ranked)
    if refined:
        several = len({row["encoder"] for row in refined}) > 1
        page.section("Parts of the bound")
        add_parts(
            page,
            refined,
            [pair_of(row, several) for row in refined],
            " Refined pairs among the best.",
        )
    page.section("Best source of each target").table(
        trimmed(best[:top]),
        caption=(
            f"Best source by score, {min(top, len(best))} of {len(best):,} "
            "targets, best first"
        ),
        formats=PERCENT,
    )
    if len(best) > top:
        page.table(
            trimmed(best[-top:]),
            caption=f"The {top} targets that are served worst",
            formats=PERCENT,
        )
    page.section("Score against accuracy")
    some = best[:: -(-len(best) // _MOST_POINTS)] if best else []
    add_scatter(
        page,
        [row["score"] for row in some],
        [row["probe_accuracy"] for row in some],
        None,
        [row["target"] for row in some],
        "score of the best source",
        "accuracy of a source-free probe",
    )
    _scan_map(page, points)
    page.section("Failures")
    page.table(
        as_rows(counts["reasons"], "reason", "pairs")[:_MOST_FAILED],
        caption="Why pairs have no figures",
    )
    failed = result.failures(_MOST_FAILED)
    if failed:
        page.table(
            failed,
            caption=f"{len(failed)} of {counts['failed']:,} pairs without figures",
        )
    page.section("Provenance")
    add_provenance(page, manifest["config"], manifest["versions"])
    page.text(f"Key of the random numbers: {manifest['key']}.")
    for role in ("sources", "targets"):
        tasks = [
            {
                "name": t["name"],
                "encoder": t["encoder"],
                "content": t["content"],
                "problem": t["problem"] or "",
            }
            for t in manifest[role]
        ]
        page.table(
            trimmed(tasks),
            caption=f"The {role}, with hashes of their content",
            most=top,
        )
    return page


def pair_of(row: Mapping[str, Any], encoder: bool = True) -> str:
    return f"{row['source']} to {row['target']}" + (
        f" ({row['encoder']})" if row["encoder"] and encoder else ""
    )


def _refined(
    result: ScanResult, ranked: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The refined rows among those ranked, with the figures that the parts of a bound
    need.
    """
    wanted = {
        (row["encoder"], row["source"], row["target"]): k
        for k, row in enumerate(ranked)
        if row["stage"] == "refine"
    }
    if not wanted:
        return []
    columns = [
        "encoder",
        "source",
        "target",
        *RUNGS,
        "transformed_source_loss",
        "reweighted_source_loss",
        "label_mismatch",
        "target_loss",
        "prior_entropy",
    ]
    rows = result.table("refine", columns)
    near = np.ones(
        len(rows), bool
    )  # few of perhaps a million, before they become Python's
    for place, name in enumerate(("encoder", "source", "target")):
        codes, words = _coded(rows[name])
        near &= np.isin(
            codes,
            [
                k
                for k, word in enumerate(words)
                if word in {key[place] for key in wanted}
            ],
        )
    found = rows.take(np.flatnonzero(near)).to_pylist()
    found = [
        row
        for row in found
        if (row["encoder"], row["source"], row["target"]) in wanted and rung_parts(row)
    ]
    return sorted(
        found, key=lambda row: wanted[row["encoder"], row["source"], row["target"]]
    )


def _best_of_targets(
    result: ScanResult,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The best source of each target (and encoder), best first; and rows
    `source, target, score` of a map's tasks.

    Columns are read as arrays: a scan may have a million rows, of which few become
    Python's.
    """
    rows = result.table(columns=list(_READ))
    rows = rows.filter(rows["score"].is_valid())
    if not len(rows):
        return [], []
    score, pair = rows["score"].to_numpy(), rows["pair"].to_numpy()
    words = {
        name: _coded(rows[name]) for name in ("encoder", "source", "target", "stage")
    }
    # Of a pair that was refined the refined row counts.
    refined = np.array(words["stage"][1])[words["stage"][0]] == "refine"
    keep = np.flatnonzero(refined | ~np.isin(pair, pair[refined]))
    order = keep[np.lexsort((pair[keep], -score[keep]))]
    target = words["target"][0] * len(words["encoder"][1]) + words["encoder"][0]
    _, first = np.unique(target[order], return_index=True)
    chosen = order[np.sort(first)]
    probe = rows["probe_accuracy"].to_numpy()

    def word(name, k):
        return words[name][1][words[name][0][k]]

    best = [
        {
            "target": word("target", k),
            "source": word("source", k),
            "encoder": word("encoder", k),
            "score": float(score[k]),
            "probe_accuracy": float(probe[k]),
            "stage": word("stage", k),
        }
        for k in chosen
    ]
    # The map's tasks: those of the best pairs first.
    tasks: dict[str, None] = {}
    for row in best:
        for name in (row["source"], row["target"]):
            if len(tasks) < _MOST_MAPPED:
                tasks[name] = None
    inside = [
        np.isin(words[name][0], [k for k, w in enumerate(words[name][1]) if w in tasks])
        for name in ("source", "target")
    ]
    mapped = keep[inside[0][keep] & inside[1][keep]]
    return best, [
        {
            "source": word("source", k),
            "target": word("target", k),
            "score": float(score[k]),
        }
        for k in mapped
    ]


def _coded(column: Any) -> tuple[np.ndarray, list[str]]:
    """A column of words as codes and words."""
    one = column.combine_chunks()
    one = one if hasattr(one, "indices") else one.dictionary_encode()
    return one.indices.to_numpy(zero_copy_only=False), [
        "" if w is None else str(w) for w in one.dictionary.to_pylist()
    ]


def _scan_map(page: Page, points: list[dict[str, Any]]) -> None:
    names = {name for row in points for name in (row["source"], row["target"])}
    more = (
        f" The {_MOST_MAPPED} tasks of the best pairs."
        if len(names) >= _MOST_MAPPED
        else ""
    )
    add_map(page, points, more)


# -- an evaluation ---------------------------------------------------------------------


_STATISTIC = "weighted_tau"


def evaluation_page(result: Evaluation, title: str | None) -> Page:
    """The page of an evaluation: what to make of it, scores with intervals, targets one
    by one, the truth.
    """
    page = Page(
        title
        or (
            f"Which score to trust: {len(result.targets)} targets, "
            f"{len(result.models)} models"
        )
    )
    page.section("Verdict").items(result.notes(_STATISTIC))
    table = result.table(_STATISTIC)
    page.section("Scores against the truth")
    known = [row for row in table if np.isfinite(row[_STATISTIC])]
    truth = result.truth_name.replace("_", " ")
    if known:
        page.figure(
            evaluation_figure(result, _STATISTIC),
            caption=f"Weighted tau of each score with the {truth}: mean over targets "
            f"with its {result.interval:.0%} "
            "interval; small dots are targets. Baselines are always in the table.",
            alt="Scores by weighted tau: "
            + "; ".join(f"{row['score']} {row[_STATISTIC]:.2f}" for row in known[:20])
            + ".",
        )
    marked = [
        {**row, "score": row["score"] + MARKS.get(row["kind"], "")} for row in table
    ]
    page.table(
        marked,
        caption=(
            "Scores, best first (* baseline; (pool): depends on which models are "
            "in the table)"
        ),
        formats={"regret_1": ".4f", "relative_accuracy": ".4f"},
    )
    others = (
        "pearson",
        "spearman",
        "kendall",
        "weighted_tau_by_score",
        "weighted_tau_by_truth",
        "regret_1",
        "regret_3",
    )
    page.table(
        [
            {"score": row["score"]}
            | {name: result.estimates[name_of][name].value for name in others}
            for row, name_of in zip(
                marked, (row["score"] for row in table), strict=True
            )
        ],
        caption=(
            "Other statistics, means over targets (of the two weighted taus one "
            "ranks by the score, one by the truth)"
        ),
    )
    page.section("Target by target")
    page.table(
        [
            {"target": target}
            | {
                row["score"]: float(
                    result.estimates[row["score"]][_STATISTIC].per_target[k]
                )
                for row in table
            }
            for k, target in enumerate(result.targets)
        ],
        caption="Weighted tau on each target",
    )
    page.table(
        result.chosen_elsewhere(_STATISTIC),
        caption=(
            "The score that does best on the other targets, and how it does on this one"
        ),
    )
    page.section("Score against accuracy")
    for row in [row for row in known if row["kind"] != "baseline"][:2]:
        within = [
            _standardised(values, result.truth)
            for values in (result.scores[row["score"]], result.truth)
        ]
        groups = [target for target in result.targets for _ in result.models]
        add_scatter(
            page,
            within[0].ravel().tolist(),
            within[1].ravel().tolist(),
            groups,
            None,
            f"{row['score']}, standardised within targets",
            f"{truth}, standardised within targets",
        )
    page.section("The truth").table(
        [
            {"model": model} | dict(zip(result.targets, column.tolist(), strict=True))
            for model, column in zip(result.models, result.truth.T, strict=True)
        ],
        caption=f"{truth} of each model",
    )
    if result.reasons:
        page.table(
            as_rows(result.reasons, "score", "reason"),
            caption="Why scores have blanks",
        )
    page.section("Provenance").text(
        f"{result.replicates:,} bootstrap draws of "
        f"{'targets and models' if result.over == 'both' else result.over}; "
        f"entropy {', '.join(map(str, result.entropy))}."
    )
    return page


def _standardised(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Rows without their mean, in standard deviations, over the models whose truth is
    known; NaN where there is no spread.
    """
    values = np.where(np.isfinite(truth) & np.isfinite(values), values, np.nan)
    out = np.full(values.shape, np.nan)
    for row, mine in enumerate(values):
        there = np.isfinite(mine)
        if there.sum() > 1 and np.ptp(mine[there]) > 0:
            out[row] = (mine - mine[there].mean()) / mine[there].std()
    return out
