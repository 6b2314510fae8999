"""`Config`: how a pair is analysed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from tta_jax._internal.numbers import real_number, whole_number
from tta_jax._internal.serialization import storable
from tta_jax.core import feature_maps

OBJECTIVES = ("score", "tight", "oscillation", "theorem", "published")
LEARN = ("all", "map", "none")
ASSIGNMENTS = ("cost", "random")
_CHOICES = {
    "objective": OBJECTIVES,
    "learn": LEARN,
    "assignment": ASSIGNMENTS,
    "rungs": ("all", "tight"),
    "feature_map": ("auto", "logit_affine", *feature_maps.FAMILIES),
}
_SWITCHES = ("standardize", "refit_head")
_LEAST = {
    "source_per_class": 0,
    "folds": 0,
    "steps": 0,
    "batch_size": 2,
    "restarts": 1,
    "sinkhorn_iterations": 1,
    "bootstrap": 0,
}
_LEVELS = ("confidence", "interval")


@storable
@dataclasses.dataclass(frozen=True)
class Config:
    """How a pair is analysed. Frozen, hashable and value-equal; changing a number that
    is not a shape compiles nothing.

    The default objective with its "logit_affine" map is solved in closed form:
    `learning_rate`, `batch_size`, `restarts` and `learn="map"` change nothing there,
    and `steps` only matters as zero or not. Other maps and objectives descend, in
    checks of ten steps, so `steps` is rounded up to tens; "published" has a schedule of
    its own, where of these only `steps` and `learn` count.

    Attributes:
      objective: what is minimised: "score" (held-out target loss; the default),
        "tight", "oscillation", "theorem" (these rungs), or "published" (the paper's
        algorithm).
      learn: "all", "map" (labels stay assigned) or "none" (identity map); the paper's
        LearnedAll, LearnedA, FixedAll.
      assignment: which source class each target class starts with: "cost" (the
        assignment of least cost), or "random" (any, as in the paper's ablation;
        "published" always has it so).
      feature_map: a family of `tta_jax.core.feature_maps`; "auto" is "logit_affine"
        ("dense" for "theorem", "published_pair" for "published").
      source_per_class: source items of a class that are used at most, a random subset
        of a larger class; 0 for all.
      holdout: share of both tasks that takes no part in learning; 0 for none.
      folds: 2 or more for cross-fitting in place of one hold-out.
      steps: optimiser steps; 0 keeps the closed-form start; None is 300, and 1,001 for
        "published".
      learning_rate: of Adam.
      batch_size: items per class and step.
      restarts: starts optimised side by side (the first is the closed form, the others
        are perturbed).
      epsilon: entropic regularisation, relative to the mean cost; decides the gap of
        certificates, not their validity.
      sinkhorn_iterations: most iterations per class and cost in a certificate.
      rungs: "all", or "tight" for no transport at all.
      standardize: standardise features (a source with a head of yours keeps its
        coordinates).
      clip: standardised target features are cut at this many deviations; `inf` for
        none.
      l2: weight decay of a fitted head; None chooses by hold-out.
      lipschitz: bound on the certified constant of a fitted head, per standardised
        unit; None for none. "published" has its own penalty instead.
      refit_head: refit a head that was given.
      confidence: adds a statement about the population at this level, for example 0.95.
      clip_loss: the loss is clipped there (nats) in that statement; None takes
        `2 ln K_T`.
      bootstrap: replicates of the intervals.
      interval: level of the intervals.
    """

    objective: str = "score"
    learn: str = "all"
    assignment: str = "cost"
    feature_map: str = "auto"
    source_per_class: int = 1000
    holdout: float = 0.25
    folds: int = 0
    steps: int | None = None
    learning_rate: float = 1e-2
    batch_size: int = 64
    restarts: int = 1
    epsilon: float = 0.02
    sinkhorn_iterations: int = 300
    rungs: str = "all"
    standardize: bool = True
    clip: float = 5.0
    l2: float | None = None
    lipschitz: float | None = None
    refit_head: bool = False
    confidence: float | None = None
    clip_loss: float | None = None
    bootstrap: int = 300
    interval: float = 0.95

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None or field.default is not None:
                # Stored as plain Python values, so that a configuration can be hashed
                # and written as JSON.
                object.__setattr__(self, field.name, _checked(field.name, value))
        if self.objective == "theorem" and self.feature_map in (
            "coupling_layers",
            "logit_affine",
        ):
            raise ValueError(
                f"feature_map: found {self.feature_map!r}, which has no affine A for "
                "objective 'theorem' to descend on; "
                "choose an affine family or another objective"
            )
        if self.objective == "published":
            if self.feature_map not in ("auto", "published_pair"):
                raise ValueError(
                    f"feature_map: found {self.feature_map!r}; objective 'published' "
                    "has its own, leave it out"
                )
            if self.lipschitz is not None:
                raise ValueError(
                    f"lipschitz: found {self.lipschitz}; objective 'published' has its "
                    "own, leave it out"
                )

    @property
    def step_count(self) -> int:
        """`steps` with None resolved."""
        return (
            {"published": 1001}.get(self.objective, 300)
            if self.steps is None
            else self.steps
        )

    @property
    def family(self) -> str:
        """The feature map's family: "auto" resolved, "identity" where no map is
        learned.
        """
        if self.objective == "published":
            return "published_pair"
        if self.learn == "none":
            return "identity"
        if self.feature_map != "auto":
            return self.feature_map
        return "dense" if self.objective == "theorem" else "logit_affine"


def _checked(name: str, value: Any) -> Any:
    """`value` as a plain Python value that the field `name` allows."""
    found = " ".join(repr(value).split())  # an array's takes several lines
    if name in _CHOICES:
        if not isinstance(value, str) or value not in _CHOICES[name]:
            raise ValueError(
                f"{name}: found {found}; choose one of {', '.join(_CHOICES[name])}"
            )
        return str(value)
    if name in _SWITCHES:
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError(f"{name}: found {found}; give True or False")
        return bool(value)
    if name in _LEAST:
        count = whole_number(value)
        if count is None or count < _LEAST[name]:
            raise ValueError(
                f"{name}: found {found}; give a whole number of at least {_LEAST[name]}"
            )
        if name == "folds" and count == 1:
            raise ValueError("folds: found 1; give 0 for one hold-out or at least 2")
        return count
    number = real_number(value)
    if name == "holdout":
        if not 0 <= number < 1:
            raise ValueError(
                f"{name}: found {found}; give a share of at least 0 and below 1"
            )
    elif name in _LEVELS:
        if not 0 < number < 1:
            raise ValueError(
                f"{name}: found {found}; give a level between 0 and 1, for example 0.95"
            )
    elif not (number > 0 and (math.isfinite(number) or name == "clip")):
        raise ValueError(f"{name}: found {found}; give a positive number")
    return number
