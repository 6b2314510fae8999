"""Scores that exist over a pool of models only: their parts scaled to [0, 1] over the
pool, then added.

What such a score says of a model depends on which other models are scored.
`tta_jax.metrics` keeps the raw parts.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# Weights of the scaled parts, as published.
POOLED: dict[str, dict[str, float]] = {
    "ncti": {"ncti_seli": 1.0, "ncti_ncc": 1.0, "ncti_collapse": 1.0},
    "etran": {"etran_energy": 0.15, "etran_lda": 0.85},
}


def scaled(values: np.ndarray) -> np.ndarray:
    """`(v - min) / (max - min)` over the pool, NaN where v is; NaN everywhere unless
    two values differ.
    """
    values = np.asarray(values, np.float64)
    known = values[np.isfinite(values)]
    if not known.size or known.max() == known.min():
        return np.full(values.shape, np.nan)
    return (values - known.min()) / (known.max() - known.min())


def pool(name: str, parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """A pooled score of every model, `(models,)`, from its raw parts `(models,)`.

    Raises:
      ValueError: for another score, or a part that is missing or of another length.
    """
    if name not in POOLED:
        raise ValueError(
            f"name: there is no pooled score {name!r}; choose one of "
            f"{', '.join(POOLED)}"
        )
    weights = POOLED[name]
    missing = [part for part in weights if part not in parts]
    if missing:
        raise ValueError(
            f"parts: {name} needs {', '.join(weights)}; {missing[0]} is missing"
        )
    columns = [np.asarray(parts[part], np.float64) for part in weights]
    if any(column.ndim != 1 or column.shape != columns[0].shape for column in columns):
        raise ValueError(
            f"parts: {', '.join(weights)} need one value for each model of the pool"
        )
    return np.asarray(
        sum(
            weight * scaled(column)
            for weight, column in zip(weights.values(), columns, strict=True)
        )
    )
