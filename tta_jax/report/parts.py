"""Which parts add up to which rung, and which figures of an analysis are to be judged.
No drawing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tta_jax.bound import RUNGS, Bound
from tta_jax.certificate import Certificate

if TYPE_CHECKING:
    from tta_jax.analysis import Analysis

REWEIGHTED, MISMATCH = "reweighted source loss", "label mismatch"
TRANSFORMED, DISTRIBUTION = "transformed source loss", "distribution mismatch"
_LOSSES = {
    "tight": {TRANSFORMED: "transformed_source_loss"},
    "oscillation": {TRANSFORMED: "transformed_source_loss"},
    "lipschitz": {TRANSFORMED: "transformed_source_loss"},
    "theorem": {REWEIGHTED: "reweighted_source_loss", MISMATCH: "label_mismatch"},
}
DISTRIBUTION_OF = {
    "tight": "excess of the target losses",
    "oscillation": "transport, cost osc",
    "lipschitz": "tau * W1",
    "theorem": "tau * W1",
}


def figure_of(bound: Any, name: str) -> float:
    """A figure of a `Bound`, or of a row of a scan; NaN where there is none."""
    value = bound.get(name) if isinstance(bound, Mapping) else getattr(bound, name)
    return math.nan if value is None else float(value)


def rung_parts(bound: Any) -> dict[str, dict[str, float]]:
    """Parts of each finite rung, nats, in the order in which they are stacked; their
    sum is the rung.

    `tight` is the transformed source loss and the excess of the target's losses,
    `oscillation` and `lipschitz` the same loss and a transport, `theorem` reweighted
    source loss, label mismatch and `tau * W1`.

    Args:
      bound: a `Bound`, or a mapping with its names, as a row of a scan.
    """
    found = {}
    for rung in RUNGS:
        losses = {part: figure_of(bound, name) for part, name in _LOSSES[rung].items()}
        rest = figure_of(bound, rung) - sum(losses.values())
        if math.isfinite(rest):
            found[rung] = losses | {DISTRIBUTION: rest}
    return found


def class_shares(result: Analysis) -> np.ndarray:
    """`(K_T, K_S)`: from which source classes each target class draws; rows sum to 1,
    or are 0 for a class without mass.
    """
    joint = np.asarray(result.transforms.coupling, np.float64)
    return joint / np.maximum(joint.sum(1, keepdims=True), 1e-300)


def judged(result: Analysis) -> tuple[Bound, Certificate]:
    """The held-out chain and its certificate where there is a hold-out, else those in
    sample.
    """
    part = result if result.held_out is None else result.held_out
    return part.bound, part.certificate
