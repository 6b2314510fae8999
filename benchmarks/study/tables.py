"""Statistics of rows: correlations, means, choices, each with an interval that draws
targets anew, with all of their rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tta_jax.evaluation import rank_statistics

Row = dict[str, Any]
DRAWS = 2000
LEVEL = 0.95
RUNGS = ("tight", "oscillation", "lipschitz", "theorem")
_CORRECTED = {
    "target_accuracy": "corrected_accuracy",
    "knn_accuracy": "corrected_knn",
    "metric_knn": "metric_knn_corrected",
}


def column(rows: Sequence[Row], name: str) -> np.ndarray:
    """`(n,)` floats, NaN for a blank."""
    return np.array(
        [np.nan if row.get(name) is None else float(row[name]) for row in rows]
    )


def chance_corrected(accuracy: float, share: float) -> float:
    """Accuracy beyond that of always naming the largest class, which has that share, as
    a share of what there is beyond it.
    """
    return (accuracy - share) / (1 - share)


def on_scale(rows: Iterable[Row]) -> list[Row]:
    """Rows that did not fail, with their figures on the scale of guessing, larger is
    better.

    Bounds and losses: `1 - bound / H(p_T)` under `scaled_NAME`; LEEP and NCE, which are
    log-likelihoods, likewise under `metric_NAME_scaled`. Accuracies of `h'''` and of
    nearest neighbours: corrected for chance as that of the probe.
    """
    found = [dict(row) for row in rows if not row.get("reason")]
    entropy = {"probe_loss": "probe_entropy"}
    for row in found:
        for name in (*RUNGS, "target_loss", "free_probe_loss", "probe_loss"):
            value, unit = row.get(name), row.get(entropy.get(name, "prior_entropy"))
            row[f"scaled_{name}"] = (
                None if value is None or not unit else 1 - value / unit
            )
        for name in ("leep", "nce"):
            value, unit = row.get(f"metric_{name}"), row.get("prior_entropy")
            if value is not None and unit:
                row[f"metric_{name}_scaled"] = 1 + value / unit
        share = row.get("largest_share")
        for name, corrected in _CORRECTED.items():
            if share is not None and row.get(name) is not None:
                row[corrected] = chance_corrected(row[name], share)
    return found


def correlation(
    x: np.ndarray, y: np.ndarray, targets: np.ndarray, splits: np.ndarray | None = None
) -> Row:
    """Pearson's over all rows with both: within each split of the targets' items, then
    the mean over splits.

    Not of means over splits: what is judged in one of them is seen in another.
    """
    there = np.isfinite(x) & np.isfinite(y)
    if not there.any():
        return _nothing()
    splits = np.zeros(len(x)) if splits is None else splits
    return _row(*_pearson(x[there], y[there], targets[there], splits[there]))


def difference(rows: Sequence[Row], score: str, other: str, truth: str) -> Row:
    """`correlation` of one score less that of another, on the rows that have both; the
    same draws of targets for both.
    """
    a, b, y = (column(rows, name) for name in (score, other, truth))
    there = np.isfinite(a) & np.isfinite(b) & np.isfinite(y)
    if not there.any():
        return _nothing()
    targets, splits = (
        np.array([row.get(name, 0) for row in rows])[there]
        for name in ("target", "repeat")
    )
    (pairs, one, drawn), (_, two, too) = (
        _pearson(x[there], y[there], targets, splits) for x in (a, b)
    )
    return _row(pairs, one - two, drawn - too)


def _pearson(
    x: np.ndarray, y: np.ndarray, targets: np.ndarray, splits: np.ndarray
) -> tuple[int, float, np.ndarray]:
    """Pairs, Pearson's within each split, mean over splits, and the same in every draw
    of targets.
    """
    counts, parts = _draws(targets), [splits == split for split in np.unique(splits)]
    values = [float(rank_statistics.pearson(x[part], y[part])) for part in parts]
    drawn = np.mean(
        [rank_statistics.pearson(x[part], y[part], counts[:, part]) for part in parts],
        axis=0,
    )
    return int(max(part.sum() for part in parts)), float(np.mean(values)), drawn


def _row(pairs: int, value: float, drawn: np.ndarray) -> Row:
    return {"pairs": pairs, "value": value, **_limits(drawn)}


def _nothing() -> Row:
    return {
        "pairs": 0,
        "value": float("nan"),
        "low": float("nan"),
        "high": float("nan"),
    }


def mean(x: np.ndarray, targets: np.ndarray) -> Row:
    """The mean over all rows that have a value."""
    there = np.isfinite(x)
    if not there.any():
        return _nothing()
    counts = _draws(targets[there])
    with np.errstate(invalid="ignore"):
        drawn = counts @ x[there] / counts.sum(1)
    return _row(int(there.sum()), float(x[there].mean()), drawn)


def _draws(targets: np.ndarray) -> np.ndarray:
    """`(DRAWS, n)`: how often every row was drawn; those of a target are drawn
    together.
    """
    names, of = np.unique(targets, return_inverse=True)
    return rank_statistics.draw((len(names), 1), "targets", DRAWS, 0).targets[:, of]


def _limits(drawn: np.ndarray) -> Row:
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < 2 or np.ptp(drawn) == 0:  # one target says nothing of others
        return {"low": float("nan"), "high": float("nan")}
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"low": float(low), "high": float(high)}


def over_pairs(rows: Sequence[Row], score: str, truth: str) -> Row:
    """`correlation` of two columns."""
    targets, splits = (
        np.array([row.get(name, 0) for row in rows]) for name in ("target", "repeat")
    )
    return correlation(column(rows, score), column(rows, truth), targets, splits)


def correlations(
    rows: Sequence[Row], scores: Sequence[str], truths: Sequence[str]
) -> list[Row]:
    """One row a score: Pearson's with each truth, the best with the first one on top;
    scores without values are left out.
    """
    found = []
    for name in scores:
        row: Row = {"score": plain(name)}
        for truth in truths:
            one = over_pairs(rows, name, truth)
            row |= {
                "pairs": one["pairs"],
                plain(truth): one["value"],
                f"{plain(truth)} 95 %": span(one),
            }
        if row["pairs"]:
            found.append(row)
    return sorted(
        found, key=lambda row: -np.nan_to_num(row[plain(truths[0])], nan=-2.0)
    )


def _splits(rows: Sequence[Row], target: str) -> list[list[Row]]:
    """Rows of a target, those of each split of its items together."""
    found: dict[int, list[Row]] = {}
    for row in rows:
        if row["target"] == target:
            found.setdefault(row.get("repeat", 0), []).append(row)
    return list(found.values())


def _mean_of_some(values: Sequence[float]) -> float:
    """Of those that there are; NaN where there are none."""
    there = [value for value in values if np.isfinite(value)]
    return float(np.mean(there)) if there else float("nan")


def within_targets(rows: Sequence[Row], scores: Sequence[str], truth: str) -> list[Row]:
    """One row a score: Pearson's over the rows of a target in a split, mean over
    splits, then over targets.
    """
    found = []
    names = sorted({row["target"] for row in rows})
    parts = [_splits(rows, target) for target in names]
    for name in scores:
        values = [
            _mean_of_some(
                [
                    float(
                        rank_statistics.pearson(column(mine, name), column(mine, truth))
                    )
                    for mine in part
                ]
            )
            for part in parts
        ]
        one = mean(np.array(values), np.array(names))
        found.append(
            {
                "score": plain(name),
                "targets": one["pairs"],
                "value": one["value"],
                "95 %": span(one),
            }
        )
    return sorted(found, key=lambda row: -np.nan_to_num(row["value"], nan=-2.0))


def choices(
    rows: Sequence[Row],
    scores: Sequence[str],
    truth: str,
    related: dict[str, list[str]],
) -> list[Row]:
    """Who finds the source that is known to be right, and what its choices cost; means
    over splits, then targets.
    """
    found = []
    parts = {target: _splits(rows, target) for target in related}
    for name in scores:
        means = []
        for target, right in related.items():
            of_target = []
            for mine in parts[target]:
                values, true = column(mine, name), column(mine, truth)
                if np.isfinite(values).any():
                    best = int(np.nanargmax(values))
                    of_target.append(
                        (
                            mine[best]["source"] in right,
                            float(np.nanmax(true) - true[best]),
                        )
                    )
            if of_target:
                means.append(np.mean(of_target, axis=0))
        if means:
            share, lost = map(float, np.mean(means, axis=0))
            found.append(
                {
                    "score": plain(name),
                    "targets": len(means),
                    "related first": share,
                    "regret": lost,
                }
            )
    return sorted(found, key=lambda row: (-row["related first"], row["regret"]))


def plain(name: str) -> str:
    """A column's name as people say it."""
    known = {
        "scaled_probe_loss": "linear probe loss",
        "chance_corrected": "linear probe accuracy",
        "corrected_knn": "k-NN on the judged items",
        "metric_knn": "k-NN",
        "metric_knn_corrected": "k-NN, corrected",
        "scaled_free_probe_loss": "ridge probe, no source",
        "corrected_accuracy": "accuracy of h'''",
    }
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

    lines = [
        "| " + " | ".join(n.replace("_", " ") for n in names) + " |",
        "|" + "---|" * len(names),
    ]
    return (
        "\n".join(
            lines
            + [
                "| " + " | ".join(cell(row.get(n)) for n in names) + " |"
                for row in rows
            ]
        )
        + "\n"
    )
