"""The result of an analysis, its score and its JSON form."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Hashable
from typing import Any

import jax
import numpy as np

from tta_jax._internal.serialization import load_as, save, storable
from tta_jax._internal.text import finite, printable
from tta_jax.analysis.relatedness import Relatedness
from tta_jax.bounds.certificate import Certificate
from tta_jax.bounds.chain import RUNGS, Bound, Transforms
from tta_jax.bounds.star import StarEncoder
from tta_jax.config import Config
from tta_jax.core.feature_maps import AffineCompletion, FeatureMap
from tta_jax.core.heads import SoftmaxHead
from tta_jax.tasks.standardizer import Standardizer

# What an analysis holds can be saved.
for _kind in (
    SoftmaxHead,
    Standardizer,
    AffineCompletion,
    *FeatureMap.__subclasses__(),
):
    storable(_kind)


@storable
@dataclasses.dataclass(frozen=True)
class Probe:
    """A ridge probe on the target alone (no source): what the same labels give without
    any transfer.
    """

    loss: float
    accuracy: float


@storable
@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Figures on samples of both tasks that took no part in learning; means over folds
    where there are folds.

    Attributes:
      bound, certificate: as in the analysis.
      intervals: `target_loss`, `target_accuracy`, `tight`, `score` -> (low, high),
        bootstrap.
      informative: whether `tight` is below guessing: "yes" or "no" where the interval
        of the difference says so, else "too few items"; "" without intervals.
      level: of the intervals.
      probe: the source-free ridge probe on the same samples.
      items: labelled target items evaluated.
      population: for `Config(confidence=...)`: `confidence`, `expected_loss`, an upper
        bound of the expected loss at the class shares of the items evaluated, and
        `largest_loss`, what an item can cost at most (nats); with `clip_loss` or
        without a floor `expected_clipped_loss` and `clip`. None without it and with
        groups, whose items are not independent.
      folds: number of parts that were evaluated in turn, 1 for a single hold-out.
    """

    bound: Bound
    certificate: Certificate
    intervals: dict[str, tuple[float, float]]
    informative: str
    level: float
    probe: Probe
    items: int
    population: dict[str, float] | None
    folds: int


@storable
@dataclasses.dataclass(frozen=True)
class Analysis:
    """What `analyze` found.

    Attributes:
      bound: the chain on the learning part (in sample).
      certificate: its certificate.
      held_out: the honest figures; None with `holdout=0` and no folds, or without
        target labels.
      relatedness: how related the source is, on the held-out items; None without
        them, and where the source has fewer classes than the target.
      transforms: class prior, label mixing, coupling, feature map; the map acts on
        `source_scaler(features)` and gives `target_scaler(features)`. For
        `Config(feature_map="star")` these encode features in the star.
      head: the head that was used, on `source_scaler(features)`; your own one
        unchanged, whose `source_scaler` is the identity.
      probe: source-free ridge probe, in sample.
      info: what the optimiser recorded, arrays by name.
      stopped: why learning ended where it did.
      timings: seconds by phase.
      warnings: what a reader should know.
      covers: what the labels are against which losses are counted.
    """

    bound: Bound
    certificate: Certificate
    held_out: HeldOut | None
    relatedness: Relatedness | None
    transforms: Transforms
    head: SoftmaxHead
    source_scaler: Standardizer | StarEncoder
    target_scaler: Standardizer | StarEncoder
    probe: Probe
    info: dict[str, Any]
    stopped: str
    timings: dict[str, float]
    versions: dict[str, str]
    config: Config
    source_name: str
    target_name: str
    source_classes: tuple[Hashable, ...]
    target_classes: tuple[Hashable, ...]
    sizes: dict[str, int]
    warnings: tuple[str, ...]
    covers: str

    @property
    def _figures(self) -> Bound:
        return self.bound if self.held_out is None else self.held_out.bound

    @property
    def holds(self) -> bool:
        """Whether every chain that was evaluated holds, in sample and held out."""
        parts = (self, self.held_out, self.relatedness)
        return all(part.certificate.holds for part in parts if part is not None)

    @property
    def target_loss(self) -> float:
        """Loss of `h'''`, nats: held out where there is a hold-out."""
        return self._figures.target_loss

    @property
    def target_accuracy(self) -> float:
        """Accuracy of `h'''`: held out where there is a hold-out."""
        return self._figures.target_accuracy

    @property
    def score(self) -> float | None:
        """`1 - held-out target loss / H(p_T)`: 1 perfect, 0 guessing; None without a
        hold-out, NaN when `H(p_T) = 0`.
        """
        return None if self.held_out is None else score_of(self.held_out.bound)

    def predict_proba(self, features: Any) -> np.ndarray:
        """`h'''` on raw target features `(n, d)`: class probabilities `(n, K_T)` in the
        order of `target_classes`.

        Raises:
          ValueError: for another number of features, or NaN.
        """
        features = np.asarray(features)
        width, dtype = self.target_scaler.dim, self.target_scaler.dtype
        if features.ndim != 2 or features.shape[1] != width:
            raise ValueError(
                f"features: found shape {features.shape}, expected (n, {width})"
            )
        if features.dtype.kind not in "fiub" and features.dtype.name != "bfloat16":
            raise ValueError(
                f"features: found dtype {features.dtype}; give real numbers"
            )
        with np.errstate(over="ignore"):
            features = features.astype(dtype)
        if not np.isfinite(features).all():
            raise ValueError(
                f"features: NaN, infinite or beyond {dtype}; remove or repair such rows"
            )
        x = self.target_scaler(features)
        return np.exp(np.asarray(self.transforms.predict_log_proba(self.head, x)))

    def save(self, path: str | os.PathLike) -> None:
        """Write everything to one file, atomically; `Analysis.load` reads it back bit
        for bit.
        """
        save(path, self)

    @staticmethod
    def load(path: str | os.PathLike) -> Analysis:
        """Read what `save` wrote. Raises ValueError for anything else."""
        return load_as(path, Analysis, "an Analysis")

    def check_stored(self) -> None:
        """Check what a file holds beyond the types of its fields: shapes that fit.

        Raises:
          ValueError: a shape is another one; and whatever showing the result raises.
        """
        shape = (len(self.target_classes), len(self.source_classes))
        if np.shape(self.transforms.log_joint) != shape:
            raise ValueError(f"its coupling is not of shape {shape}")
        scaler = self.target_scaler
        row = jax.ShapeDtypeStruct((1, scaler.dim), scaler.dtype)
        # Traced, not computed: every array on the way has to have its shape.
        found = jax.eval_shape(
            lambda x: self.transforms.predict_log_proba(self.head, scaler(x)), row
        )
        if found.shape != (1, shape[0]):
            raise ValueError(f"its classifier gives shape {found.shape}")
        self.summary()
        self.to_dict()

    def to_dict(self) -> dict[str, Any]:
        """Figures, priors and label mixing as plain Python values, for JSON."""
        return _plain_result(self)

    def summary(self) -> str:
        """A page of text that ends in a plain verdict."""
        return summarize(self)


def score_of(bound: Bound) -> float:
    """`1 - target loss / H(p_T)`; NaN when `H(p_T) = 0`."""
    return (
        1 - bound.target_loss / bound.prior_entropy
        if bound.prior_entropy > 0
        else float("nan")
    )


def versions(*more: str) -> dict[str, str]:
    """Of Python, the device, the libraries that figures depend on, and more
    packages.
    """
    from importlib.metadata import version

    names = ("tta-jax", "jax", "jaxlib", "optax", "ott-jax", "flax", "numpy", *more)
    found = {
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
    }
    for name in names:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:
            found[name] = "not installed"
    return found


def _plain_result(result: Analysis) -> dict[str, Any]:
    def bounds(bound: Bound, certificate: Certificate) -> dict[str, Any]:
        figures = {f.name: getattr(bound, f.name) for f in dataclasses.fields(bound)}
        rungs = {
            n: [getattr(certificate, n).lower, getattr(certificate, n).upper]
            for n in RUNGS
        }
        return figures | {
            "informative": bool(bound.informative),
            "informative_rungs": list(bound.informative_rungs),
            "holds": certificate.holds,
            "wasserstein_terms": rungs,
            "not_certified": certificate.reasons,
        }

    held = result.held_out
    return finite(
        {
            "source": result.source_name,
            "target": result.target_name,
            "source_classes": [str(c) for c in result.source_classes],
            "target_classes": [str(c) for c in result.target_classes],
            "sizes": result.sizes,
            "score": result.score,
            "target_loss": result.target_loss,
            "target_accuracy": result.target_accuracy,
            "covers": result.covers,
            "in_sample": bounds(result.bound, result.certificate)
            | {"probe": dataclasses.asdict(result.probe)},
            "held_out": None
            if held is None
            else bounds(held.bound, held.certificate)
            | {
                "intervals": {k: list(v) for k, v in held.intervals.items()},
                "informative_with_margin": held.informative,
                "level": held.level,
                "items": held.items,
                "probe": dataclasses.asdict(held.probe),
                "population": held.population,
                "folds": held.folds,
            },
            "relatedness": _plain_relatedness(result.relatedness),
            "prior": np.asarray(result.transforms.prior).tolist(),
            "label_mixing": np.asarray(result.transforms.label_mixing).tolist(),
            "stopped": result.stopped,
            "timings": result.timings,
            "versions": result.versions,
            "config": dataclasses.asdict(result.config),
            "warnings": list(result.warnings),
        }
    )


def _plain_relatedness(related: Relatedness | None) -> dict[str, Any] | None:
    if related is None:
        return None
    chains = {"chain": related.bound, "theorem_chain": related.theorem_bound}
    return (
        {"value": related.value}
        | {name: dataclasses.asdict(chain) for name, chain in chains.items()}
        | {
            "holds": related.certificate.holds,
            "informative_rungs": list(related.informative_rungs),
            "intervals": {k: list(v) for k, v in related.intervals.items()},
            "level": related.level,
            "capped": related.capped,
            "cap": related.cap,
            "assignment": list(related.assignment),
            "settings": dataclasses.asdict(related.settings),
            "theorem_settings": dataclasses.asdict(related.theorem_settings),
            "items": related.items,
        }
    )


# -- text ------------------------------------------------------------------------------


def class_shares(result: Analysis) -> np.ndarray:
    """`(K_T, K_S)`: from which source classes each target class draws; rows sum to 1,
    or are 0 for a class without mass.
    """
    joint = np.asarray(result.transforms.coupling, np.float64)
    return joint / np.maximum(joint.sum(1, keepdims=True), 1e-300)


def headline_bound(result: Analysis) -> tuple[Bound, Certificate]:
    """The held-out chain and its certificate where there is a hold-out, else those in
    sample.
    """
    part = result if result.held_out is None else result.held_out
    return part.bound, part.certificate


# What each rung is made of.
PROMISES = {
    "tight": "computed from the target losses: a diagnosis, not a prediction",
    "directed": "exact transformed loss + transport that charges what gets harder",
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
        ("directed transport", bound.directed_wasserstein),
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
    seen = result.bound.target_loss
    gap = result.held_out.bound.target_loss - seen
    if "target_loss" not in result.held_out.intervals:
        return (
            f"cannot be told: a difference of {gap:+.2f} nats to unseen items, without "
            "an interval"
        )
    low, high = (end - seen for end in result.held_out.intervals["target_loss"])
    much = 0.1 * result.held_out.bound.prior_entropy
    span = f"{low:+.2f} to {high:+.2f}, {result.held_out.level:.0%} interval"
    if low > 0:
        how = "very likely" if gap > much else "a little"
        return (
            f"{how}: the loss rises by {gap:.2f} nats from the labels learned on to "
            f"unseen ones ({span})"
        )
    if high > much:
        return (
            f"cannot be told: a difference of {gap:+.2f} nats to unseen items may be "
            f"noise ({span})"
        )
    return (
        "hardly: learned and unseen items lose about the same (difference "
        f"{gap:+.2f} nats, {span})"
    )


def performance_lines(result: Analysis) -> list[str]:
    """How well the classifier does on held-out items, with intervals."""
    held = result.held_out
    assert held is not None
    spread, level = held.intervals, f"{held.level:.0%} interval"

    def line(name, value, unit, interval):
        low, high = spread.get(interval, (None, None))
        said = f"   {unit(low)} to {unit(high)}" if low is not None else ""
        return f"  {name:<26} {unit(value):>9}{said}"

    def share(v):
        return f"{v:.1%}"

    lines = [
        line("score", score_of(held.bound), nats, "score"),
        line("loss", held.bound.target_loss, nats, "target_loss"),
        line("accuracy", held.bound.target_accuracy, share, "target_accuracy"),
        f"  {'guessing by class shares':<26} {nats(held.bound.prior_entropy):>9}",
        f"  {'ridge probe, no source':<26} {nats(held.probe.loss):>9}   accuracy "
        f"{share(held.probe.accuracy)}",
    ]
    if spread:
        lines[0] += f"   ({level}s)"
    return lines


def relatedness_lines(result: Analysis) -> list[str]:
    """The chain in the star, its parts, and which class stands for which."""
    related = result.relatedness
    assert related is not None
    spread, bound = related.intervals, related.bound
    said = "   {} to {}".format(*map(nats, spread["value"])) if spread else ""
    entropy = bound.prior_entropy

    def line(name, value, about):
        mark = " " if value < entropy else "*"
        return f"  {name:<26} {nats(value):>9} {mark} {about}"

    stands = ", ".join(
        f"{name} <- {result.source_classes[k]}"
        for name, k in list(
            zip(result.target_classes, related.assignment, strict=True)
        )[:10]
    )
    more = len(related.assignment) - 10
    return [
        f"  {'relatedness':<26} {nats(related.value):>9}{said}",
        line(
            "directed",
            bound.directed,
            f"source loss {nats(bound.reweighted_source_loss)} + what gets harder "
            f"{nats(bound.directed_wasserstein)}",
        ),
        line(
            "theorem",
            related.theorem_bound.theorem,
            f"source loss {nats(related.theorem_bound.reweighted_source_loss)} + "
            f"distance {nats(related.theorem_bound.oscillation_wasserstein)} (the "
            "paper's form)",
        ),
        line(
            "directed, weights chosen",
            related.capped,
            f"source items weigh up to {related.cap:g} times as much: a diagnosis",
        ),
        f"  {'loss it bounds':<26} {nats(bound.target_loss):>9}   of the star's own "
        f"classifier, accuracy {bound.target_accuracy:.1%}",
        f"  stands for: {stands}" + (f", and {more} more" if more > 0 else ""),
    ]


def verdict(result: Analysis) -> list[str]:
    """What the figures say, in sentences that say no more."""
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
                f"The classifier removes {removed:.0%} of the label uncertainty of "
                f"these held-out items (score {removed:.3f})."
            )
    elif pseudo:
        lines.append(
            "No target label was held out: nothing here says how well the true labels "
            "are met."
        )
    else:
        lines.append(
            f"In sample only: loss {figures.target_loss:.2f} nats, accuracy "
            f"{figures.target_accuracy:.0%}; no hold-out, no promise."
        )
    lines += _related_verdict(result)
    rungs = figures.informative_rungs
    if rungs:
        lines.append(
            f"Informative rungs of the classifier (below {figures.prior_entropy:.2f} "
            f"nats): {', '.join(rungs)}."
        )
    else:
        lines.append(
            "No rung of the classifier is informative: the bounds allow a loss as high "
            "as guessing."
        )
    if result.held_out is not None:
        probe = result.held_out.probe
        lines.append(
            f"A ridge probe that knows no source reaches {probe.accuracy:.0%} and "
            f"{probe.loss:.2f} nats on the same items."
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


def _related_verdict(result: Analysis) -> list[str]:
    related = result.relatedness
    if related is None:
        return []
    bound, entropy = related.bound, related.bound.prior_entropy
    if not bound.directed < entropy:
        return [
            "How related the source is cannot be told: the bound from source loss and "
            "distance is not below guessing."
        ]
    also = related.theorem_bound.theorem < entropy
    return [
        f"From source loss and distance alone, the loss of the star's classifier on "
        f"these held-out items is at most {bound.directed:.2f} nats (relatedness "
        f"{related.value:.2f}); the paper's symmetric bound is "
        + (f"{related.theorem_bound.theorem:.2f}." if also else "not below guessing.")
    ]


def summarize(result: Analysis) -> str:
    """The page: how well the classifier does, how related the source is, what is
    certified, and the verdict.
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
        lines += ["", f"How well will it do? ({what}; losses in nats)"]
        lines += performance_lines(result)
    if result.relatedness is not None:
        lines += ["", "How related is the source? (the same items; * says nothing)"]
        lines += relatedness_lines(result)
    where = "held out" if held is not None else "in sample"
    bound, certificate = headline_bound(result)
    lines += ["", f"What is certified of the classifier, nats ({where})"]
    lines += chain_lines(bound, certificate)
    lines += ["", f"Parts ({where})", *part_lines(bound)]
    if held is not None:
        lines += ["", "In sample", *chain_lines(result.bound, result.certificate)[:5]]
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
            + (
                f"is at most {p['expected_loss']:.3f} nats (no item costs more than "
                f"{p['largest_loss']:.2f}; "
                if "expected_loss" in p
                else f"clipped at {p['clip']:.2f} nats is at most "
                f"{p['expected_clipped_loss']:.3f} ("
            )
            + "betting bound, independent items).",
        ]
    lines += ["", "Target class <- source classes assigned to it", *carriers(result)]
    if result.info.get("words") == "equidistant":
        lines.append(
            "  (the classifier does not depend on which: codes of all classes are "
            "equally far apart)"
        )
    lines += ["", *(f"Note: {w}" for w in result.warnings)] if result.warnings else []
    lines += ["", "Verdict", *(f"  {line}" for line in verdict(result))]
    if not result.holds:
        lines.append(
            "  THE CHAIN DOES NOT HOLD on these data: please report this with the "
            "saved file."
        )
    return "\n".join(map(printable, lines))
