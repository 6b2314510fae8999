"""Statistics of rows: correlations, means, choices, each with an interval that draws targets anew, with all of their rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tta_jax import ranking

Row = dict[str, Any]
DRAWS = 2000
LEVEL = 0.95
RUNGS = ("tight", "oscillation", "lipschitz", "theorem")


def column(rows: Sequence[Row], name: str) -> np.ndarray:
    """`(n,)` floats, NaN for a blank."""
    return np.array([np.nan if row.get(name) is None else float(row[name]) for row in rows])


def averaged(rows: Iterable[Row], keys: Sequence[str]) -> list[Row]:
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
    """Figures on the scale of guessing, larger is better.

    Bounds and losses: `1 - bound / H(p_T)` under `scaled_NAME`. Accuracy of `h'''`: corrected for chance as that of the probe.
    """
    entropy = {"probe_loss": "probe_entropy", "knn_loss": "probe_entropy"}
    for row in rows:
        for name in (*RUNGS, "target_loss", "free_probe_loss", "probe_loss", "knn_loss"):
            value, unit = row.get(name), row.get(entropy.get(name, "prior_entropy"))
            row[f"scaled_{name}"] = None if value is None or not unit else 1 - value / unit
        mine, probe, corrected = (row.get(name) for name in ("target_accuracy", "probe_accuracy", "chance_corrected"))
        if mine is not None and corrected is not None and corrected < 1:
            share = (probe - corrected) / (1 - corrected)  # of the largest class
            row["corrected_accuracy"] = (mine - share) / (1 - share)
    return list(rows)


def correlation(x: np.ndarray, y: np.ndarray, targets: np.ndarray) -> Row:
    """Pearson's over all rows with both."""
    there = np.isfinite(x) & np.isfinite(y)
    x, y = x[there], y[there]
    if not len(x):
        return {"pairs": 0, "value": float("nan"), "low": float("nan"), "high": float("nan")}
    drawn = ranking.pearson(x, y, _draws(targets[there]))
    return {"pairs": len(x), "value": float(ranking.pearson(x, y)), **_limits(drawn)}


def mean(x: np.ndarray, targets: np.ndarray) -> Row:
    """The mean over all rows that have a value."""
    there = np.isfinite(x)
    if not there.any():
        return {"pairs": 0, "value": float("nan"), "low": float("nan"), "high": float("nan")}
    counts = _draws(targets[there])
    with np.errstate(invalid="ignore"):
        drawn = counts @ x[there] / counts.sum(1)
    return {"pairs": int(there.sum()), "value": float(x[there].mean()), **_limits(drawn)}


def _draws(targets: np.ndarray) -> np.ndarray:
    """`(DRAWS, n)`: how often every row was drawn; those of a target are drawn together."""
    names, of = np.unique(targets, return_inverse=True)
    return ranking.draw((len(names), 1), "targets", DRAWS, 0).targets[:, of]


def _limits(drawn: np.ndarray) -> Row:
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < 2 or np.ptp(drawn) == 0:  # one target says nothing of others
        return {"low": float("nan"), "high": float("nan")}
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"low": float(low), "high": float(high)}


def correlations(rows: Sequence[Row], scores: Sequence[str], truths: Sequence[str]) -> list[Row]:
    """One row a score: Pearson's with each truth, the best with the first one on top; scores without values are left out."""
    targets, found = np.array([row["target"] for row in rows]), []
    for name in scores:
        x, row = column(rows, name), {"score": plain(name)}
        for truth in truths:
            one = correlation(x, column(rows, truth), targets)
            row |= {"pairs": one["pairs"], plain(truth): one["value"], f"{plain(truth)} 95 %": span(one)}
        if row["pairs"]:
            found.append(row)
    return sorted(found, key=lambda row: -np.nan_to_num(row[plain(truths[0])], nan=-2.0))


def within_targets(rows: Sequence[Row], scores: Sequence[str], truth: str) -> list[Row]:
    """One row a score: the mean over targets of Pearson's over the rows of a target."""
    found = []
    names = sorted({row["target"] for row in rows})
    for name in scores:
        values = []
        for target in names:
            mine = [row for row in rows if row["target"] == target]
            values.append(float(ranking.pearson(column(mine, name), column(mine, truth))))
        one = mean(np.array(values), np.array(names))
        found.append({"score": plain(name), "targets": one["pairs"], "value": one["value"], "95 %": span(one)})
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
            share, lost = float(np.mean(hits)), float(np.mean(regrets))
            found.append({"score": plain(name), "targets": len(hits), "related first": share, "regret": lost})
    return sorted(found, key=lambda row: (-row["related first"], row["regret"]))


def plain(name: str) -> str:
    """A column's name as people say it."""
    known = {
        "scaled_probe_loss": "linear probe loss", "chance_corrected": "linear probe accuracy", "knn_accuracy": "k-NN accuracy",
        "scaled_free_probe_loss": "ridge probe, no source", "corrected_accuracy": "accuracy of h'''",
    }  # fmt: skip
    for start in ("metric_", "free_", "scaled_"):
        if name not in known and name.startswith(start):
            name = name.removeprefix(start)
    return known.get(name, name).replace("_", " ")


def span(one: Row) -> str:
    return "-" if np.isnan(one["low"]) else f"{one['low']:.2f} to {one['high']:.2f}"


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
