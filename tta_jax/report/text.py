"""An analysis as a page of text that ends in a plain verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tta_jax.bound import RUNGS, Bound
from tta_jax.certificate import Certificate

if TYPE_CHECKING:
    from tta_jax.analysis import Analysis

# What each rung is made of.
PROMISES = {
    "tight": "computed from the target losses: a diagnosis, not a prediction",
    "oscillation": "exact transformed loss + transport with cost osc",
    "lipschitz": "exact transformed loss + tau * W1",
    "theorem": "source loss + label mismatch + tau * W1 (the paper's form, certified)",
}


def nats(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else ("inf" if value > 0 else "nan")


def chain_lines(bound: Bound, certificate: Certificate) -> list[str]:
    """The rungs, one a line, with what they promise."""
    lines = [
        (
            f"  target loss    {nats(bound.target_loss):>9}   accuracy "
            f"{bound.target_accuracy:.1%}"
        )
    ]
    for name in RUNGS:
        value = getattr(bound, name)
        says = " " if value < bound.prior_entropy else "*"
        gap = getattr(certificate, name).gap
        about = certificate.reasons.get(name) or PROMISES[name] + (
            f"; gap {gap:.3f}" if gap > 0 else ""
        )
        lines.append(f"  {name:<14} {nats(value):>9} {says} {about}")
    lines.append(
        f"  prior entropy  {nats(bound.prior_entropy):>9}   what guessing by class "
        "shares costs; * says nothing beyond it"
    )
    return lines


def part_lines(bound: Bound) -> list[str]:
    pairs = [
        ("reweighted source loss", bound.reweighted_source_loss),
        ("label mismatch H(Y''|Y')", bound.label_mismatch),
        ("transformed source loss", bound.transformed_source_loss),
        ("oscillation transport", bound.oscillation_wasserstein),
        ("W1 (feature units)", bound.wasserstein),
        ("Lipschitz constant tau", bound.lipschitz_constant),
    ]
    return [f"  {name:<26} {nats(value):>9}" for name, value in pairs]


def carriers(result: Analysis) -> list[str]:
    """Which source classes carry which target classes."""
    joint = np.asarray(result.transforms.coupling)
    lines = []
    for t, row in enumerate(joint):
        if row.sum() <= 0:
            continue
        shares = row / row.sum()
        order = [k for k in np.argsort(-shares) if shares[k] >= 0.05][:4]
        text = ", ".join(
            f"{result.source_classes[k]}"
            + (f" {shares[k]:.0%}" if shares[k] < 0.995 else "")
            for k in order
        )
        lines.append(f"  {result.target_classes[t]!s:<20} <- {text}")
    return lines


def dominant(bound: Bound) -> str:
    """The largest part of the tight bound, in words."""
    parts = {
        "the source classifier's own loss": min(
            bound.reweighted_source_loss, bound.transformed_source_loss
        ),
        "source classes that several target classes share": max(
            0.0, bound.transformed_source_loss - bound.reweighted_source_loss
        ),
        (
            "target items that lose more than the source items they are matched to"
        ): bound.tight - bound.transformed_source_loss,
    }
    name = max(parts, key=lambda k: parts[k])
    return f"{name} ({nats(parts[name])} of {nats(bound.tight)} nats)"


def more_labels(result: Analysis) -> str:
    """Whether more target labels would help: what separates in-sample from held-out
    loss.
    """
    if result.held_out is None:
        return "unknown without a hold-out"
    gap = result.held_out.bound.target_loss - result.bound.target_loss
    low, high = result.held_out.intervals.get("target_loss", (np.nan, np.nan))
    noise = (high - low) / 2 if np.isfinite(high - low) else 0.0
    share = gap / max(result.held_out.bound.prior_entropy, 1e-9)
    if gap > noise:
        much = "very likely" if share > 0.1 else "a little"
        return (
            f"{much}: the loss rises by {gap:.2f} nats from the labels learned on "
            "to unseen ones"
        )
    if noise > 0.1 * result.held_out.bound.prior_entropy:
        return (
            f"cannot be told: the difference of {gap:+.2f} nats to unseen items is "
            f"within the noise (+-{noise:.2f})"
        )
    return (
        "hardly: learned and unseen items lose about the same (difference "
        f"{gap:+.2f} nats)"
    )


def verdict(result: Analysis) -> list[str]:
    figures = result.bound if result.held_out is None else result.held_out.bound
    lines = []
    pseudo = result.covers != "the labels given"
    if result.held_out is not None:
        spread = result.held_out.intervals
        level = f"{result.held_out.level:.0%} interval"
        loss, acc = spread.get("target_loss"), spread.get("target_accuracy")
        lines.append(
            f"Expect about {figures.target_accuracy:.0%} accuracy"
            + (f" ({acc[0]:.0%} to {acc[1]:.0%})" if acc else "")
            + f" and a loss of {figures.target_loss:.2f} nats"
            + (f" ({loss[0]:.2f} to {loss[1]:.2f}; {level})" if loss else "")
            + f" on unseen items; guessing costs {figures.prior_entropy:.2f}."
        )
        removed = result.score
        if removed is not None and np.isfinite(removed):
            lines.append(
                f"The transferred classifier removes {removed:.0%} of the label "
                f"uncertainty (score {removed:.3f})."
            )
        probe = result.held_out.probe
        lines.append(
            f"A ridge probe that knows no source reaches {probe.accuracy:.0%} and "
            f"{probe.loss:.2f} nats on the same items."
        )
    elif pseudo:
        lines.append(
            "No target label was held out: nothing here says how well the true "
            "labels "
            "are met."
        )
    else:
        lines.append(
            f"In sample only: loss {figures.target_loss:.2f} nats, accuracy "
            f"{figures.target_accuracy:.0%}; no hold-out, no promise."
        )
    rungs = figures.informative_rungs
    if rungs:
        lines.append(
            f"Informative rungs (below {figures.prior_entropy:.2f} nats): "
            f"{', '.join(rungs)}."
        )
    else:
        lines.append(
            "No rung is informative: the bounds allow a loss as high as guessing."
        )
    lines.append(f"What weighs most: {dominant(figures)}.")
    lines.append(f"Would more target labels help? {more_labels(result)}.")
    if pseudo:
        which = (
            "Everything counts"
            if result.held_out is None
            else "Held-out figures count against true labels, in-sample ones"
        )
        lines.append(f"{which} against {result.covers}.")
    return lines


def summary(result: Analysis) -> str:
    """The page: what was analysed, the chain, its parts, who carries whom, the
    verdict.
    """
    held = result.held_out
    sizes = result.sizes
    thinned = ""
    if sizes["source_used"] < sizes["source_given"]:
        thinned = (
            f" ({sizes['source_given']} thinned to {sizes['source_used']}, less "
            "what is held out)"
        )
    lines = [
        f"{result.source_name} -> {result.target_name}: {sizes['source']} source "
        f"items{thinned} and {sizes['target']} target "
        f"items to learn from, {sizes['features']} features",
        (
            f"objective {result.config.objective}, map {result.config.family}; "
            f"{result.stopped}"
        ),
    ]
    if held is not None:
        what = f"held out: {held.items} target items" + (
            f" in {held.folds} folds" if held.folds > 1 else ""
        )
        lines += [
            "",
            f"Bounds on the target loss, nats ({what})",
            *chain_lines(held.bound, held.certificate),
        ]
        lines += ["", "Parts (held out)", *part_lines(held.bound)]
        lines += ["", "In sample", *chain_lines(result.bound, result.certificate)[:5]]
    else:
        lines += [
            "",
            "Bounds on the target loss, nats (in sample)",
            *chain_lines(result.bound, result.certificate),
        ]
        lines += ["", "Parts (in sample)", *part_lines(result.bound)]
    if "published_lipschitz_constant" in result.info:
        tau = float(result.info["published_lipschitz_constant"])
        figures = result.bound if held is None else held.bound
        own = (
            figures.reweighted_source_loss
            + figures.label_mismatch
            + tau * figures.wasserstein
        )
        lines.append(
            f"  the paper's own tau {tau:.3f} (uncertified) would give {nats(own)}"
        )
    if held is not None and held.population is not None:
        p = held.population
        lines += [
            "",
            f"Population: with confidence {p['confidence']:.0%} the expected loss "
            f"clipped at {p['clip']:.2f} nats is at most "
            f"{p['expected_clipped_loss']:.3f} (Chernoff-Hoeffding, i.i.d. items).",
        ]
    lines += ["", "Target class <- source classes that carry it", *carriers(result)]
    lines += ["", *(f"Note: {w}" for w in result.warnings)] if result.warnings else []
    lines += ["", "Verdict", *(f"  {line}" for line in verdict(result))]
    if not result.holds:
        lines.append(
            "  THE CHAIN DOES NOT HOLD on these data: please report this with the "
            "saved file."
        )
    return "\n".join(lines)
