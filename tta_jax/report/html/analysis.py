"""Pages of one analysis, and of several compared."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np

from tta_jax.analysis.decomposition import rung_parts
from tta_jax.analysis.relatedness import Relatedness
from tta_jax.analysis.result import (
    PROMISES,
    Analysis,
    carriers,
    headline_bound,
    verdict,
)
from tta_jax.bounds.chain import RUNGS
from tta_jax.core.feature_maps import LogitAffine
from tta_jax.report.figures.bounds import (
    chain_figure,
    convergence_figure,
    mixing_figure,
    relatedness_figure,
)
from tta_jax.report.figures.features import features_figure
from tta_jax.report.figures.tasks import distance_figure
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
from tta_jax.tasks.task import Task


def analysis_page(
    result: Analysis, source: Task | None, target: Task | None, title: str | None
) -> Page:
    """The page of one analysis: verdict, chain, parts, label mixing, features where
    they are given, convergence, provenance.
    """
    page = Page(title or f"Does {result.source_name} transfer to {result.target_name}?")
    where = (
        "in sample"
        if result.held_out is None
        else f"on {result.held_out.items} held-out items"
    )
    page.section("Verdict").items(verdict(result))
    if not result.holds:
        page.note(
            "The chain does not hold on these data: please report this with the saved "
            "file."
        )
    for warning in result.warnings:
        page.note(warning)
    if result.relatedness is not None:
        page.section("How related is the source?")
        _relatedness(page, result.relatedness, result)
    bound, certificate = headline_bound(result)
    page.section("The chain of bounds")
    rows = _chain_rows(result)
    alt = "; ".join(
        f"{row['rung']} {row['nats']:.3g}" for row in rows if np.isfinite(row["nats"])
    )
    page.figure(
        chain_figure(result),
        caption=f"Bounds on the target loss in nats, {where}, on a log scale; a bound "
        "on the right of the line says no more than guessing by class shares."
        + (" Lines are bootstrap intervals." if result.held_out is not None else ""),
        alt=(
            f"Chain of bounds in nats: {alt}. Guessing costs {bound.prior_entropy:.3g}."
        ),
    )
    page.table(trimmed(rows), caption=f"Bounds on the target loss, nats, {where}")
    if result.held_out is not None:
        page.table(
            trimmed(_chain_rows(result, held_out=False)),
            caption="The same in sample, nats",
        )
    page.section("Parts of the bound")
    parts = rung_parts(bound)
    if parts:
        add_parts(page, [result])
    page.table(
        [
            {
                "rung": rung,
                "part": part,
                "nats": value,
                "share": value / total if total else None,
            }
            for rung, found in parts.items()
            for total in [sum(found.values())]
            for part, value in found.items()
        ],
        caption="What adds up to each rung, nats",
        formats={"share": ".0%"},
    )
    page.table(
        [
            {
                "figure": "W1 between transformed source and target, feature units",
                "value": bound.wasserstein,
            },
            {"figure": "Lipschitz constant tau", "value": bound.lipschitz_constant},
            {
                "figure": "transport with cost osc, nats",
                "value": bound.oscillation_wasserstein,
            },
            {
                "figure": "largest marginal error of the solver, before rounding",
                "value": certificate.marginal_error,
            },
        ],
        caption="What the transports are made of",
    )
    page.section("Which source classes carry which target classes")
    page.figure(
        mixing_figure(result),
        caption=(
            "Label mixing: each row shows from which source classes a target class "
            "draws, as shares of it."
        ),
        alt="Heat map of label mixing. "
        + "; ".join(" ".join(line.split()) for line in carriers(result)[:12]),
    )
    page.items(
        [" ".join(line.split()).replace(" <- ", ": ") for line in carriers(result)]
    )
    page.section("Features")
    _features(page, result, source, target)
    page.section("Convergence")
    if "info_objective" in result.info:
        page.figure(
            convergence_figure(result),
            caption=(
                "The descent, a line for each of its starts. "
                f"{result.stopped[:1].upper() + result.stopped[1:]}."
            ),
            alt=(
                "Objective and gradient norm over the steps of the optimiser: "
                f"{result.stopped}."
            ),
        )
    else:
        page.text(
            f"Nothing was iterated, so there is no curve to show: {result.stopped}."
        )
    page.section("Summary").preformatted(
        result.summary(), "The summary as the terminal shows it"
    )
    page.section("Provenance")
    page.items(
        [
            f"Losses count against {result.covers}.",
            "Items: "
            + ", ".join(
                f"{name.replace('_', ' ')} {number:,}"
                for name, number in result.sizes.items()
            )
            + ".",
            "The file holds neither features nor the key of the random numbers.",
            *(
                (
                    f"The {role} given for the figures: {len(task):,} items of "
                    f"{task.name}, {_fingerprint(task)}."
                )
                for role, task in (("source", source), ("target", target))
                if task is not None
            ),
        ]
    )
    add_provenance(page, dataclasses.asdict(result.config), result.versions)
    page.table(
        as_rows(result.timings, "phase", "seconds"), caption="Time taken", digits=2
    )
    return page


def _relatedness(page: Page, related: Relatedness, result: Analysis) -> None:
    """The value, the bounds in the star with what they add up to, and the classes."""
    spread = related.intervals
    page.text(
        f"Relatedness {related.value:.3f}"
        + (" ({:.3f} to {:.3f})".format(*spread["value"]) if spread else "")
        + ": 1 less the directed bound as a share of guessing. It is computed from "
        "source loss and distance alone, on the same held-out items; the loss that it "
        f"bounds is {related.bound.target_loss:.3f} nats, of a classifier of its own."
    )
    chains = {"directed": related.bound, "theorem": related.theorem_bound}
    rows = []
    for name, bound in chains.items():
        low, high = spread.get(name, (None, None))
        value = getattr(bound, name)
        rows.append(
            {
                "bound": name,
                "nats": value,
                "interval from": low,
                "to": high,
                "source loss": bound.reweighted_source_loss,
                "distance": value - bound.reweighted_source_loss,
                "informative": bool(value < bound.prior_entropy),
            }
        )
    told = ", ".join(f"{row['bound']} {row['nats']:.3g}" for row in rows)
    page.figure(
        relatedness_figure(result),
        caption="What the bounds from source loss and distance alone add up to, nats, "
        "held out." + (" Lines are bootstrap intervals." if spread else ""),
        alt=f"Bounds in nats: {told}. Guessing costs "
        f"{related.bound.prior_entropy:.3g}.",
    )
    page.table(
        trimmed(rows),
        caption="Bounds from source loss and distance, nats; guessing costs "
        f"{related.bound.prior_entropy:.3f}",
    )
    page.items(
        [
            f"{name}: {result.source_classes[k]}"
            for name, k in zip(result.target_classes, related.assignment, strict=True)
        ][:50]
    )


def _chain_rows(result: Analysis, held_out: bool = True) -> list[dict[str, Any]]:
    part = result.held_out if held_out and result.held_out is not None else result
    bound, certificate = part.bound, part.certificate
    spread = (
        {} if result.held_out is None or not held_out else result.held_out.intervals
    )
    low, high = spread.get("target_loss", (None, None))
    rows: list[dict[str, Any]] = [
        {
            "rung": "target loss",
            "nats": bound.target_loss,
            "interval from": low,
            "to": high,
            "gap": None,
            "informative": "",
            "what it is": (
                "loss of the transformed classifier; accuracy "
                f"{bound.target_accuracy:.1%}"
            ),
        }
    ]
    for rung in RUNGS:
        low, high = spread.get(rung, (None, None))
        interval = getattr(certificate, rung)
        rows.append(
            {
                "rung": rung,
                "nats": getattr(bound, rung),
                "interval from": low,
                "to": high,
                "gap": interval.gap if np.isfinite(interval.gap) else None,
                "informative": rung in bound.informative_rungs,
                "what it is": certificate.reasons.get(rung) or PROMISES[rung],
            }
        )
    rows.append(
        {
            "rung": "guessing",
            "nats": bound.prior_entropy,
            "what it is": "what naming classes by their shares costs, H(p_T)",
        }
    )
    return rows


def _features(
    page: Page, result: Analysis, source: Task | None, target: Task | None
) -> None:
    if source is None or target is None:
        page.text(
            "Figures of source and target before and after the map, and of distances "
            "between classes, need the features: "
            "tta-jax report FILE.tta --source SOURCE.npz --target TARGET.npz"
        )
        return
    phi = result.transforms.feature_map
    spaces = [
        *([] if phi.why_not else ["features"]),
        *(["logits"] if isinstance(phi, LogitAffine) else []),
    ]
    moved = {
        "features": (
            "The map moves the source's standardised features towards the target's."
        ),
        "logits": "Logits of the source classes in use, which are all that tight and "
        "oscillation see: the target's are those of "
        "the source head before, and of the transformed classifier after the map, "
        "which makes them as sharp as the target's loss is best served by.",
    }
    for space in spaces:
        page.figure(
            features_figure(result, source, target, space=space),
            caption=f"{moved[space]} One plane for both panels, of the first two "
            "principal axes; colours are target "
            "classes, a source item having that of the class which its own class "
            "carries most of.",
            alt=f"Two scatter plots of {space} of source and target items in a plane, "
            "before and after the learned map, coloured by target class: "
            f"{', '.join(map(str, result.target_classes[:12]))}.",
        )
    if not np.asarray(target.labelled).any():
        page.text(
            "The target has no labels, so there are no distances between classes."
        )
        return
    page.figure(
        distance_figure(result, source, target, space=spaces[0]),
        caption="Distances between classes taken as Gaussians (2-Wasserstein, within "
        "the leading principal directions, in "
        f"units of the {spaces[0]}), before and after the map. Frames mark the pairs "
        "that the label mixing joins.",
        alt=(
            "Two heat maps of distances between target classes (rows) and source "
            "classes (columns), before and after the map."
        ),
    )


def _fingerprint(task: Task) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(task.features).tobytes())
    digest.update(np.ascontiguousarray(task.labels).tobytes())
    return f"SHA-256 of features and labels {digest.hexdigest()[:16]}"


# -- several ---------------------------------------------------------------------------


def analyses_page(
    results: dict[str, Analysis], left_out: dict[str, str], title: str | None, top: int
) -> Page:
    """The page of several analyses: ranking, parts, bounds against accuracy, a map of
    the tasks.
    """

    def score(result):
        return (
            -np.inf if result.score is None or np.isnan(result.score) else result.score
        )

    ordered = sorted(results.items(), key=lambda pair: (-score(pair[1]), pair[0]))
    rows = [_pair_row(file, result) for file, result in ordered]
    page = Page(title or f"{len(rows)} transfers compared")
    page.section("Verdict")
    best, worst = rows[0], rows[-1]

    def said(row):
        return f"{row['source']} to {row['target']}" + (
            f" (score {row['score']:.3f})" if row["score"] is not None else ""
        )

    informative = sum("oscillation" in row["informative rungs"] for row in rows)
    page.items(
        [
            f"{said(best)} transfers best, {said(worst)} worst.",
            f"{sum('tight' in row['informative rungs'] for row in rows)} of "
            f"{len(rows)} pairs have an informative tight bound, "
            f"{informative} an informative oscillation bound (below what guessing "
            "costs).",
            (
                "The score is the share of label uncertainty that the transferred "
                "classifier removes: 1 perfect, 0 guessing."
            ),
        ]
    )
    wrong = [file for file, result in ordered if not result.holds]
    if wrong:
        page.note(
            f"The chain does not hold for {', '.join(wrong)}: please report this with "
            "the saved files."
        )
    page.section("Ranking").table(
        rows,
        caption=(
            "Pairs by score; losses and bounds in nats, held out where there is a "
            "hold-out"
        ),
        formats=PERCENT,
    )
    page.section("Parts of the bound")
    some = ordered[:top]
    names = [f"{row['source']} to {row['target']}" for row in rows[:top]]
    if any(rung_parts(headline_bound(result)[0]) for _, result in some):
        more = (
            f" The best {len(some)} of {len(ordered)} pairs."
            if len(some) < len(ordered)
            else ""
        )
        add_parts(page, [result for _, result in some], names, more)
    page.section("Bounds against accuracy")
    targets = [row["target"] for row in rows]
    for name in ("tight", "oscillation"):
        add_scatter(
            page,
            [row[name] / row["guessing"] if row["guessing"] else None for row in rows],
            [row["probe accuracy"] for row in rows],
            targets,
            targets,
            f"{name} bound over the cost of guessing",
            "accuracy of a source-free probe",
        )
    add_map(
        page,
        [
            {"source": r["source"], "target": r["target"], "score": r["score"]}
            for r in rows
        ],
    )
    page.section("Each pair in words")
    for row, (_, result) in zip(rows[:top], ordered, strict=False):
        page.text(
            f"{row['source']} to {row['target']}: {' '.join(verdict(result)[:2])}"
        )
    if left_out:
        page.section("Left out")
        page.table(
            as_rows(left_out, "file", "reason"),
            caption="Files that could not be read",
        )
    page.section("Provenance")
    versions = list(
        dict.fromkeys(tuple(result.versions.items()) for _, result in ordered)
    )
    page.items(
        [", ".join(f"{name} {number}" for name, number in found) for found in versions]
    )
    return page


def _pair_row(file: str, result: Analysis) -> dict[str, Any]:
    bound, _ = headline_bound(result)
    held = result.held_out
    low, high = (
        (None, None) if held is None else held.intervals.get("score", (None, None))
    )
    probe = result.probe if held is None else held.probe
    return {
        "target": result.target_name,
        "source": result.source_name,
        "score": result.score,
        "from": low,
        "to": high,
        "accuracy": bound.target_accuracy,
        "target loss": bound.target_loss,
        **{rung: getattr(bound, rung) for rung in RUNGS},
        "guessing": bound.prior_entropy,
        "probe loss": probe.loss,
        "probe accuracy": probe.accuracy,
        "informative rungs": ", ".join(bound.informative_rungs) or "none",
        "file": file,
    }
