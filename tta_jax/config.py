"""`Config`: how a pair is analysed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from tta_jax._internal.numbers import real_number, whole_number
from tta_jax._internal.serialization import storable

OBJECTIVES = ("score", "tight", "directed", "oscillation", "theorem", "published")
LEARN = ("all", "map", "none")
# Of `core.feature_maps`, by name: the command line reads this without jax.
FEATURE_MAPS = (
    "auto",
    "logit_affine",
    "identity",
    "translation",
    "diagonal",
    "rotation",
    "low_rank",
    "dense",
    "published_pair",
    "coupling_layers",
    "star",
)


def _option(
    default: Any,
    says: str,
    metavar: str = "",
    *,
    choices: tuple[str, ...] = (),
    at_least: int | None = None,
    level: bool = False,
) -> Any:
    """Describe a field once, for checks, the command line, `--help` and the docs.

    Args:
      default: its value.
      says: what it does.
      metavar: placeholder on the command line; "" for a switch.
      choices: the texts it may be.
      at_least: the least whole number it may be.
      level: whether it lies between 0 and 1.
    """
    metadata = {
        "says": says,
        "metavar": metavar,
        "choices": choices,
        "at_least": at_least,
        "level": level,
    }
    return dataclasses.field(default=default, metadata=metadata)


@storable
@dataclasses.dataclass(frozen=True)
class Config:
    """How a pair is analysed.

    Frozen, hashable and value-equal; changing a number that is not a shape compiles
    nothing. The default objective with its "logit_affine" map is solved in closed form:
    `learning_rate`, `batch_size`, `restarts` and `learn="map"` change nothing there,
    and `steps` only matters as zero or not. "published" has a schedule of its own,
    where of these only `steps` and `learn` count.
    """

    objective: str = _option(
        "score",
        (
            'what is minimised: "score" is the held-out target loss; "tight", '
            '"directed", "oscillation", "theorem" are rungs of the bound; "published" '
            "is the paper's algorithm"
        ),
        "NAME",
        choices=OBJECTIVES,
    )
    learn: str = _option(
        "all",
        (
            '"all", "map" (labels stay assigned) or "none" (identity map): the '
            "paper's LearnedAll, LearnedA, FixedAll"
        ),
        "WHAT",
        choices=LEARN,
    )
    assignment: str = _option(
        "cost",
        (
            "which source class each target class starts with: that of the assignment "
            "of "
            'least "cost", or a "random" one'
        ),
        "HOW",
        choices=("cost", "random"),
    )
    feature_map: str = _option(
        "auto",
        (
            'family of the map; "auto" is "logit_affine", for "theorem" "dense", for '
            '"published" "published_pair"; "star" is the encoder in which the theorem '
            'has a closed form, for "directed" and "theorem"'
        ),
        "FAMILY",
        choices=FEATURE_MAPS,
    )
    divide_source: bool = _option(
        True,
        (
            "divide the classes of a source that has fewer than the target by their "
            "features, into twice as many as the target has; not with a head of yours, "
            "nor for published"
        ),
    )
    source_per_class: int = _option(
        1000,
        (
            "source items of a class used at most, a random subset of a larger class; "
            "0 for all"
        ),
        "N",
        at_least=0,
    )
    holdout: float = _option(
        0.25,
        "share of both tasks that takes no part in learning; 0 for none",
        "SHARE",
    )
    folds: int = _option(
        0,
        "2 or more for cross-fitting in place of one hold-out",
        "K",
        at_least=0,
    )
    steps: int | None = _option(
        None,
        (
            "optimiser steps, rounded up to tens; 0 keeps the closed-form start; None "
            "is 300, for published 1,001"
        ),
        "N",
        at_least=0,
    )
    learning_rate: float = _option(
        1e-2,
        "of Adam, where there is a descent",
        "RATE",
    )
    batch_size: int = _option(
        64,
        "items per class and step of a descent",
        "N",
        at_least=2,
    )
    restarts: int = _option(
        1,
        (
            "starts of a descent optimised side by side; the first is the closed form, "
            "the others are perturbed"
        ),
        "N",
        at_least=1,
    )
    epsilon: float = _option(
        0.02,
        (
            "entropic regularisation relative to the mean cost; decides the gap of "
            "certificates, not their validity"
        ),
        "E",
    )
    sinkhorn_iterations: int = _option(
        300,
        "most iterations per class and cost in a certificate",
        "N",
        at_least=1,
    )
    rungs: str = _option(
        "all",
        '"all", or "tight" for no transport',
        "WHICH",
        choices=("all", "tight"),
    )
    standardize: bool = _option(
        True,
        "standardise features; a source with a head of yours keeps its coordinates",
    )
    clip: float = _option(
        5.0,
        "standardised target features are cut at so many deviations; inf for none",
        "Z",
    )
    l2: float | None = _option(
        None,
        "weight decay of a fitted head; None chooses by hold-out",
        "DECAY",
    )
    floor: float | None = _option(
        None,
        (
            "share of the target's class prior mixed into the classifier, so that no "
            "item can cost without limit; 0 for none, None chooses by inner folds; "
            "published and learn=none have none"
        ),
        "SHARE",
    )
    lipschitz: float | None = _option(
        None,
        "bound on the certified constant of a fitted head, per standardised unit",
        "TAU",
    )
    refit_head: bool = _option(
        False,
        "refit a head that was given",
    )
    confidence: float | None = _option(
        None,
        "add a statement about the population at this level, for example 0.95",
        "LEVEL",
        level=True,
    )
    clip_loss: float | None = _option(
        None,
        (
            "where that statement clips the loss, nats; None clips nothing, or without "
            "a floor at 2 ln K_T"
        ),
        "NATS",
    )
    bootstrap: int = _option(
        300,
        "replicates of the intervals; 0 for none",
        "N",
        at_least=0,
    )
    interval: float = _option(
        0.95,
        "level of the intervals",
        "LEVEL",
        level=True,
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None or field.default is not None:
                # Stored as plain Python values, so that a configuration can be hashed
                # and written as JSON.
                object.__setattr__(self, field.name, _checked(field, value))
        if self.objective == "theorem" and self.feature_map in (
            "coupling_layers",
            "logit_affine",
        ):
            raise ValueError(
                f"feature_map: found {self.feature_map!r}, which has no affine A for "
                "objective 'theorem' to descend on; "
                "choose an affine family or another objective"
            )
        if self.feature_map == "star":
            self._check_star()
        if self.objective == "published":
            if self.feature_map not in ("auto", "published_pair"):
                raise ValueError(
                    f"feature_map: found {self.feature_map!r}; objective 'published' "
                    "has its own, leave it out"
                )
            for name in ("lipschitz", "floor"):
                if (found := getattr(self, name)) is not None:
                    raise ValueError(
                        f"{name}: found {found}; objective 'published' has its own, "
                        "leave it out"
                    )

    def _check_star(self) -> None:
        """Refuse what the star does not have."""
        allowed = {
            "objective": ("directed", "theorem"),
            "learn": ("all",),
            "assignment": ("cost",),
            "rungs": ("all",),
            "floor": (None, 0.0),
        }
        for name, values in allowed.items():
            if (found := getattr(self, name)) not in values:
                wanted = " or ".join(repr(value) for value in values)
                raise ValueError(
                    f"{name}: found {found!r}; feature_map 'star' needs {wanted}"
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


def _checked(field: dataclasses.Field, value: Any) -> Any:
    """`value` as a plain Python value that the field allows."""
    name, options = field.name, field.metadata
    found = " ".join(repr(value).split())  # an array's takes several lines
    if choices := options["choices"]:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(
                f"{name}: found {found}; choose one of {', '.join(choices)}"
            )
        return str(value)
    if isinstance(field.default, bool):
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError(f"{name}: found {found}; give True or False")
        return bool(value)
    if (least := options["at_least"]) is not None:
        count = whole_number(value)
        if count is None or count < least:
            raise ValueError(
                f"{name}: found {found}; give a whole number of at least {least}"
            )
        if name == "folds" and count == 1:
            raise ValueError("folds: found 1; give 0 for one hold-out or at least 2")
        return count
    number = real_number(value)
    if name in ("holdout", "floor"):
        if not 0 <= number < 1:
            raise ValueError(
                f"{name}: found {found}; give a share of at least 0 and below 1"
            )
    elif options["level"]:
        if not 0 < number < 1:
            raise ValueError(
                f"{name}: found {found}; give a level between 0 and 1, for example 0.95"
            )
    elif not (number > 0 and (math.isfinite(number) or name == "clip")):
        raise ValueError(f"{name}: found {found}; give a positive number")
    return number


def markdown_table() -> str:
    """The fields of `Config`, as docs/configuration.md has them."""
    lines = ["| field | default | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(Config):
        says = field.metadata["says"]
        if field.metadata["choices"]:
            says += f" ({', '.join(field.metadata['choices'])})"
        lines.append(f"| `{field.name}` | `{field.default!r}` | {says} |")
    return "\n".join(lines) + "\n"


Config.__doc__ = f"{Config.__doc__}\n    Attributes:\n" + "".join(
    f"      {field.name}: {field.metadata['says']}.\n"
    for field in dataclasses.fields(Config)
)
