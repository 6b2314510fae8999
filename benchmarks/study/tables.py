"""From rows to tables: correlations, choices, means, each with an interval that draws targets anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]
DRAWS = 2000
LEVEL = 0.95
RUNGS = ("tight", "oscillation", "lipschitz", "theorem")


def column(rows: Sequence[Row], name: str) -> np.ndarray:
    """`(n,)` floats, NaN for a blank."""
    return np.array([np.nan if row.get(name) is None else float(row[name]) for row in rows])


def averaged(rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """Rows of the same keys as one: means of numbers, the first of anything else. Rows that failed are left out."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        if not row.get("reason"):
            groups.setdefault(tuple(row[k] for k in keys), []).append(row)
    found = []
    for members in groups.values():
        names = dict.fromkeys(n for m in members for n in m)
        number = lambda v: isinstance(v, (int, float)) and not isinstance(v, bool)
        row = {}
        for name in names:
            values = [m[name] for m in members if m.get(name) is not None]
            row[name] = None if not values else float(np.mean(values)) if all(map(number, values)) else values[0]
        found.append(row)
    return found


def on_scale(rows: Sequence[Row]) -> list[Row]:
    """Bounds and losses on the scale of guessing, larger is better: `1 - bound / H(p_T)` under `scaled_NAME`."""
    entropy = {"probe_loss": "probe_entropy", "knn_loss": "probe_entropy"}
    for row in rows:
        for name in (*RUNGS, "target_loss", "free_probe_loss", "probe_loss", "knn_loss"):
            value, unit = row.get(name), row.get(entropy.get(name, "prior_entropy"))
            row[f"scaled_{name}"] = None if value is None or not unit else 1 - value / unit
    return list(rows)


def correlation(x: np.ndarray, y: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """Pearson's over all rows with both, with a percentile interval over draws of targets."""
    there = np.isfinite(x) & np.isfinite(y)
    x, y, targets = x[there], y[there], targets[there]
    return {"pairs": len(x), **_interval(_pearson, (x, y), targets)}


def mean(x: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """The mean over all rows, likewise."""
    there = np.isfinite(x)
    return {
        "pairs": int(there.sum()),
        **_interval(lambda v: float(np.mean(v)) if len(v) else np.nan, (x[there],), targets[there]),
    }


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan
    return float(np.corrcoef(x, y)[0, 1])


def _interval(statistic: Callable[..., float], arrays: tuple[np.ndarray, ...], targets: np.ndarray) -> dict[str, Any]:
    """A statistic of rows; targets are drawn with replacement, with all of their rows."""
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(targets == name) for name in np.unique(targets)]
    low = high = np.nan
    if len(members) > 1:
        draws = []
        for _ in range(DRAWS):
            rows = np.concatenate([members[k] for k in rng.integers(0, len(members), len(members))])
            draws.append(statistic(*(a[rows] for a in arrays)))
        low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"value": statistic(*arrays), "low": float(low), "high": float(high)}


def correlations(rows: Sequence[Row], scores: Sequence[str], truth: str) -> list[Row]:
    """One row a score, the best first."""
    targets, y = np.array([row["target"] for row in rows]), column(rows, truth)
    found = [{"score": name, **correlation(column(rows, name), y, targets)} for name in scores]
    return sorted(found, key=lambda row: -np.nan_to_num(row["value"], nan=-2.0))


def choices(rows: Sequence[Row], scores: Sequence[str], truth: str, related: dict[str, list[str]]) -> list[Row]:
    """Who finds the source that is known to be right: one row a score, with what its choices cost on average."""
    found = []
    for name in scores:
        hits, regrets = [], []
        for target, right in related.items():
            mine = [row for row in rows if row["target"] == target]
            values, true = column(mine, name), column(mine, truth)
            if not np.isfinite(values).any():
                continue
            best = int(np.nanargmax(values))
            hits.append(mine[best]["source"] in right)
            regrets.append(float(np.nanmax(true) - true[best]))
        if hits:
            found.append(
                {"score": name, "targets": len(hits), "right": float(np.mean(hits)), "regret": float(np.mean(regrets))}
            )
    return sorted(found, key=lambda row: (-row["right"], row["regret"]))


def markdown(rows: Sequence[Row], digits: int = 3) -> str:
    """A Markdown table of rows with the same names."""
    if not rows:
        return "(nothing yet)\n"
    names = list(rows[0])

    def cell(value: Any) -> str:
        if value is None or (isinstance(value, float) and np.isnan(value)):
            return "-"
        return f"{value:.{digits}f}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(n.replace("_", " ") for n in names) + " |", "|" + "---|" * len(names)]
    return "\n".join(lines + ["| " + " | ".join(cell(row.get(n)) for n in names) + " |" for row in rows]) + "\n"
