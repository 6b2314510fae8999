"""Split each rung of a bound into its parts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tta_jax.bounds.chain import RUNGS

REWEIGHTED, MISMATCH = "reweighted source loss", "label mismatch"
TRANSFORMED, DISTRIBUTION = "transformed source loss", "distribution mismatch"
_LOSSES = {
    "tight": {TRANSFORMED: "transformed_source_loss"},
    "directed": {TRANSFORMED: "transformed_source_loss"},
    "oscillation": {TRANSFORMED: "transformed_source_loss"},
    "lipschitz": {TRANSFORMED: "transformed_source_loss"},
    "theorem": {REWEIGHTED: "reweighted_source_loss", MISMATCH: "label_mismatch"},
}
DISTRIBUTION_OF = {
    "tight": "excess of the target losses",
    "directed": "transport, cost delta",
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
    `directed`, `oscillation` and `lipschitz` the same loss and a transport, `theorem`
    reweighted source loss, label mismatch and `tau * W1`.

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
