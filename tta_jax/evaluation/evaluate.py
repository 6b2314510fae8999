"""Which score should be trusted: every score of a table against what fine-tuned or
probed models reached.

A table is long, rows `encoder, target, metric, value`, or wide, one column for each
score; files, data frames and scans are read alike. The models that a target chooses
among are the encoders, or pairs of encoder and source where the truth tells them apart;
a score that has several sources for a model is that of the best.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from tta_jax._internal.serialization import load_as, save, storable
from tta_jax._internal.text import finite, printable
from tta_jax.evaluation import rank_statistics
from tta_jax.evaluation.rank_statistics import (
    LEAST_IS_BEST,
    STATISTICS,
    Comparison,
    Estimate,
)
from tta_jax.evaluation.score_tables import (
    PARAMETER_COUNT,
    ScoreTable,
    load_scores,
    load_sizes,
    load_truth,
    lower_is_better,
    read_score_table,
)
from tta_jax.metrics.pooling import POOLED, pool
from tta_jax.tasks.splits import Seed, seed_from_key

STATIC, NEIGHBOURS = "mean_elsewhere", "knn"
ALWAYS = (STATIC, PARAMETER_COUNT, NEIGHBOURS)
MARKS = {"baseline": " *", "pooled": " (pool)"}  # of kinds, behind a name


@storable
@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """Every score against the truth. Build it with `evaluate`.

    Attributes:
      targets, models: names; "encoder/source" where sources tell models apart.
      truth: `(T, M)`, larger is better; NaN for a blank.
      truth_name: of the column that it came from.
      scores: name -> `(T, M)`, larger is better.
      kinds: name -> "score", "baseline" (always in the table) or "pooled" (depends on
        which models are in it).
      estimates: name -> statistic -> `ranking.Estimate`.
      reasons: name -> why it has blanks; for scores that have any.
      over, replicates, interval, entropy: of the bootstrap.
    """

    targets: tuple[str, ...]
    models: tuple[str, ...]
    truth: np.ndarray
    truth_name: str
    scores: dict[str, np.ndarray]
    kinds: dict[str, str]
    estimates: dict[str, dict[str, Estimate]]
    reasons: dict[str, str]
    over: str
    replicates: int
    interval: float
    entropy: list[int]

    def check_stored(self) -> None:
        """Check what a file holds beyond the types of its fields: shapes and names that
        fit.

        Raises:
          ValueError: a table or an estimate is of another shape, or a name is missing.
        """
        shape = (len(self.targets), len(self.models))
        for name, table in {self.truth_name: self.truth, **self.scores}.items():
            if table.shape != shape or table.dtype.kind != "f":
                raise ValueError(f"its table {name!r} is not {shape} real numbers")
        if not set(self.estimates) <= set(self.scores) & set(self.kinds):
            raise ValueError("it estimates a score that it does not hold")
        for found in self.estimates.values():
            if set(found) != set(STATISTICS) or any(
                array.shape != shape[:1] or array.dtype.kind != "f"
                for one in found.values()
                for array in (one.per_target, one.without)
            ):
                raise ValueError("its estimates are not those of its targets")

    def table(
        self, statistic: str = "weighted_tau", target: str | None = None
    ) -> list[dict[str, Any]]:
        """A row for each score, best first: the statistic with its interval, what
        choosing by the score costs, and its blanks.

        Scores that fewer targets define than others come after those, since their mean
        is about other targets.

        Args:
          statistic: of `ranking.STATISTICS`.
          target: the statistic of this target alone; the mean over the targets, with
            intervals, when None.

        Raises:
          ValueError: for an unknown statistic or target.
        """
        rank_statistics.check_statistic(statistic)
        if target is not None and target not in self.targets:
            raise ValueError(
                f"target: there is no target {target!r}; there are "
                f"{', '.join(self.targets[:12])}"
            )
        place = None if target is None else self.targets.index(target)
        known = (
            np.isfinite(self.truth) if place is None else np.isfinite(self.truth[place])
        )
        rows = []
        for name, found in self.estimates.items():
            one = found[statistic]

            def value(which):
                return (
                    found[which].value
                    if place is None
                    else float(found[which].per_target[place])
                )

            there = (
                np.isfinite(
                    self.scores[name] if place is None else self.scores[name][place]
                )
                & known
            )
            row: dict[str, Any] = {
                "score": name,
                "kind": self.kinds[name],
                statistic: value(statistic),
            }
            if place is None:
                row |= {"low": one.low, "high": one.high}
            row |= {
                which: value(which)
                for which in ("regret_1", "relative_accuracy")
                if which != statistic
            }
            if place is None:
                row["targets"] = one.targets
            row |= {
                "blanks": int((known & ~there).sum()),
                "reason": self.reasons.get(name, ""),
            }
            rows.append(row)
        sign = 1 if statistic in LEAST_IS_BEST else -1
        whole = self._complete(statistic)

        def worst(row):
            return np.inf if np.isnan(row[statistic]) else sign * row[statistic]

        return sorted(
            rows, key=lambda row: (row["score"] not in whole, worst(row), row["score"])
        )

    def compare(
        self, first: str, second: str, statistic: str = "weighted_tau"
    ) -> Comparison:
        """Paired test of two scores, on the models where neither is a blank.

        Raises:
          ValueError: for an unknown score or statistic.
        """
        rank_statistics.check_statistic(statistic)
        for argument, name in (("first", first), ("second", second)):
            if name not in self.scores:
                raise ValueError(
                    f"{argument}: there is no score {name!r}; there are "
                    f"{', '.join(self.scores)}"
                )
        return rank_statistics.compare(
            self.scores[first],
            self.scores[second],
            self.truth,
            statistic,
            over=self.over,
            replicates=self.replicates,
            interval=self.interval,
            key=Seed(self.entropy),
        )

    def chosen_elsewhere(self, statistic: str = "weighted_tau") -> list[dict[str, Any]]:
        """For each target the score that does best on the other targets, and how it
        does on this one: an honest choice of score.

        Empty with a single target.

        Raises:
          ValueError: for an unknown statistic.
        """
        rank_statistics.check_statistic(statistic)
        sign = -1 if statistic in LEAST_IS_BEST else 1
        rows = []
        for place, target in enumerate(self.targets):
            others = {
                name: self.estimates[name][statistic].without[place]
                for name in self._complete(statistic)
            }
            if STATIC in others:  # what it says of the other targets looks at this one
                rest = np.delete(self.truth, place, axis=0)
                values = STATISTICS[statistic](
                    rank_statistics.mean_elsewhere(rest), rest
                )
                others[STATIC] = (
                    values[np.isfinite(values)].mean()
                    if np.isfinite(values).any()
                    else np.nan
                )
            others = {
                name: value for name, value in others.items() if np.isfinite(value)
            }
            if others:
                best = max(others, key=lambda name: (sign * others[name], name))
                here = {
                    which: float(self.estimates[best][which].per_target[place])
                    for which in (statistic, "regret_1")
                }
                rows.append(
                    {
                        "target": target,
                        "score": best,
                        "elsewhere": float(others[best]),
                        **here,
                    }
                )
        return rows

    def _complete(self, statistic: str) -> list[str]:
        """Scores that as many targets define as any score."""
        targets = {
            name: found[statistic].targets for name, found in self.estimates.items()
        }
        return [
            name
            for name, number in targets.items()
            if number == max(targets.values()) > 0
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values; NaN becomes None."""
        estimates = {
            name: {
                statistic: {
                    "value": one.value,
                    "low": one.low,
                    "high": one.high,
                    "per_target": one.per_target.tolist(),
                    "without": one.without.tolist(),
                }
                for statistic, one in found.items()
            }
            for name, found in self.estimates.items()
        }
        return finite(
            {
                "targets": list(self.targets),
                "models": list(self.models),
                "truth_name": self.truth_name,
                "truth": self.truth.tolist(),
                "scores": {name: table.tolist() for name, table in self.scores.items()},
                "kinds": self.kinds,
                "estimates": estimates,
                "reasons": self.reasons,
                "over": self.over,
                "replicates": self.replicates,
                "interval": self.interval,
            }
        )

    def save(self, path: str | os.PathLike) -> None:
        """Write to one file, atomically."""
        save(path, self)

    @staticmethod
    def load(path: str | os.PathLike) -> Evaluation:
        """Read what `save` wrote.

        Raises:
          ValueError: if it is no such file.
        """
        return load_as(path, Evaluation, "an evaluation")

    def notes(self, statistic: str = "weighted_tau") -> list[str]:
        """What a reader of the table should know: the best score against the baselines,
        the honest choice, what is thin.
        """
        rank_statistics.check_statistic(statistic)
        whole = self._complete(statistic)
        scores = [
            row["score"]
            for row in self.table(statistic)
            if row["kind"] != "baseline" and row["score"] in whole
        ]
        lines = []
        for other in ALWAYS if scores else ():
            if self.estimates[other][statistic].targets:
                test = self.compare(scores[0], other, statistic)
                lines.append(
                    f"{scores[0]} less {other}: {test.difference:+.3f} "
                    f"[{test.low:+.3f}, {test.high:+.3f}], better on "
                    f"{test.first_better} targets, worse on {test.second_better}, p = "
                    f"{test.p_value:.2g} (sign flips)"
                )
        if len(scores) > 1 and lines:
            lines.append(
                f"{scores[0]} was chosen among {len(scores)} scores on these targets, "
                "which flatters it"
            )
        chosen = self.chosen_elsewhere(statistic)
        if chosen:
            names = sorted({row["score"] for row in chosen})
            figures = []
            for which in dict.fromkeys((statistic, "regret_1")):
                values = [row[which] for row in chosen if np.isfinite(row[which])]
                figures.append(f"{which} {np.mean(values) if values else np.nan:.3f}")
            lines.append(
                f"choosing the score by the other targets ({', '.join(names)}) gives "
                f"{', '.join(figures)}"
            )
        if len(self.targets) < 5:
            lines.append(
                f"{len(self.targets)} target{'s' * (len(self.targets) > 1)}: no "
                f"p-value can be below {2.0 ** (1 - len(self.targets)):.2g}"
            )
        if len(self.models) < 5:
            lines.append(
                f"{len(self.models)} models: rankings of so few agree by chance; "
                "intervals are wide"
            )
        negated = [
            name for name in (self.truth_name, *self.scores) if lower_is_better(name)
        ]
        if negated:
            lines.append(f"ranked from the least: {', '.join(negated)}")
        partial = [
            name
            for name, found in self.estimates.items()
            if found[statistic].targets and name not in whole
        ]
        if partial:
            lines.append(f"defined by fewer targets than others: {', '.join(partial)}")
        for reason in dict.fromkeys(self.reasons.values()):
            names = [name for name, why in self.reasons.items() if why == reason]
            lines.append(f"blanks of {', '.join(names)}: {reason}")
        return lines

    def summary(self, statistic: str = "weighted_tau") -> str:
        """The table and what to make of it, as text."""
        rows = self.table(statistic)

        def number(value, digits=3):
            return "" if not np.isfinite(value) else f"{value:.{digits}f}"

        lines = [
            f"{len(self.scores)} scores, {len(self.targets)} targets, "
            f"{len(self.models)} models; truth: {self.truth_name}; "
            f"{self.interval:.0%} intervals over "
            f"{'targets and models' if self.over == 'both' else self.over}",
            "",
            (
                f"{'score':<24} {statistic:>22} {'interval':>18} {'regret':>8} "
                f"{'blanks':>7}"
            ),
        ]
        for row in rows:
            regret = self.estimates[row["score"]]["regret_1"].value
            span = (
                f"[{number(row['low'])}, {number(row['high'])}]"
                if np.isfinite(row["low"])
                else ""
            )
            name = row["score"] + MARKS.get(row["kind"], "")
            lines.append(
                f"{name:<24} {number(row[statistic]):>22} {span:>18} "
                f"{number(regret, 4):>8} {row['blanks']:>7}"
            )
        lines += ["* baseline: always in the table", "", *self.notes(statistic)]
        return "\n".join(map(printable, lines))


def evaluate(
    scores: Any,
    ground_truth: Any = None,
    *,
    truth_column: str | None = None,
    parameters: Any = None,
    over: str = "both",
    replicates: int = 1000,
    interval: float = 0.95,
    key: jax.Array | Seed | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Evaluation:
    """Every score against the truth, with the static rankers and k-NN, blanks and
    intervals.

    Args:
      scores: a scan (`ScanResult` or its folder; refined figures where every pair has
        them, else screened), a file (.csv or .parquet), a data frame, or rows as of
        `metrics.tabulate`; or a list of several of these.
      ground_truth: a file, a data frame or rows `encoder[, source], target, accuracy`,
        as of `probe.ground_truth`. For a scan of
        several encoders it may be left out: the accuracy of the probes that the scan
        has fitted.
      truth_column: which column is the truth; accuracy, truth, value, probe_accuracy or
        the only number when None. Losses and errors are negated.
      parameters: numbers of parameters of the encoders: a dictionary, or rows or a file
        `encoder, parameters`. A column "parameters" among the scores does as well.
      over, replicates, interval, key: as in `ranking.correlate`.
      progress: called with what is being computed and the share that is done.

    Raises:
      ValueError: names the argument, what was found and what to do.
    """
    number = rank_statistics.check_options(over, replicates, interval)
    several = isinstance(scores, (list, tuple)) and not all(
        isinstance(part, Mapping) for part in scores
    )
    sheets = [
        read_score_table(part, "scores") for part in (scores if several else [scores])
    ]
    if ground_truth is None:
        if len(sheets) != 1 or not sheets[0].scan:
            raise ValueError(
                "ground_truth: only a scan has a truth of its own; give rows encoder, "
                "target, accuracy"
            )
        sheet, truth_column = (
            ScoreTable([f._replace(source="") for f in sheets[0].figures]),
            truth_column or "probe_accuracy",
        )
    else:
        sheet = read_score_table(ground_truth, "ground_truth")
    truth, fields, truth_name = load_truth(sheet, truth_column)
    targets = tuple(dict.fromkeys(target for target, _ in truth))
    models = tuple(dict.fromkeys(model for _, model in truth))
    if len(models) < 2:
        raise ValueError(
            f"ground_truth: it has one model ({'/'.join(*models)}); a ranking needs at "
            "least two encoders, or a column that tells sources apart"
        )
    rows_of, columns_of = (
        {name: number for number, name in enumerate(names)}
        for names in (targets, models)
    )
    place = {(t, m): (rows_of[t], columns_of[m]) for t, m in truth}
    table = np.full((len(targets), len(models)), np.nan)
    for pair, value in truth.items():
        table[place[pair]] = value
    found, reasons = load_scores(
        [figure for sheet in sheets for figure in sheet.figures],
        fields,
        place,
        table.shape,
        truth_name,
    )
    encoders = [model[0] if fields[0] == "encoder" else "" for model in models]
    found, kinds, missing = _with_baselines(found, table, encoders, parameters)
    entropy = (
        seed_from_key(jax.random.key(0) if key is None else key)
        .generate_state(4)
        .tolist()
    )
    draws = rank_statistics.draw(table.shape, over, number, Seed(entropy))
    estimates: dict[str, dict[str, Estimate]] = {}
    for done, (name, values) in enumerate(found.items()):
        if progress is not None:
            progress(name, done / len(found))
        estimates[name] = {
            which: rank_statistics.estimate(which, values, table, draws, interval)
            for which in STATISTICS
        }
    return Evaluation(
        targets,
        tuple("/".join(model) for model in models),
        table,
        truth_name,
        found,
        kinds,
        estimates,
        reasons | missing,
        over,
        number,
        float(interval),
        entropy,
    )


def _with_baselines(
    found: dict[str, np.ndarray],
    truth: np.ndarray,
    encoders: list[str],
    parameters: Any,
) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, str]]:
    """Scores with pooled ones and the baselines that are always there, their kinds, and
    why baselines are blank.
    """
    tables, reasons = dict(found), {}
    kinds = dict.fromkeys(tables, "score")
    for name, weights in POOLED.items():
        if name not in tables and all(part in tables for part in weights):
            # Over the models that have every part.
            parts = {part: tables[part] for part in weights}
            whole = np.all([np.isfinite(part) for part in parts.values()], axis=0)
            tables[name] = np.stack(
                [
                    pool(
                        name, {k: np.where(row, v[i], np.nan) for k, v in parts.items()}
                    )
                    for i, row in enumerate(whole)
                ]
            )
            kinds[name] = "pooled"
            if not np.isfinite(tables[name]).all():
                reasons[name] = "a part is missing, or the same for all models"
    blank = np.full(truth.shape, np.nan)
    tables[STATIC] = rank_statistics.mean_elsewhere(truth)
    if not np.isfinite(tables[STATIC]).any():
        reasons[STATIC] = "there is one target"
    if PARAMETER_COUNT not in tables:
        tables[PARAMETER_COUNT] = blank
        reasons[PARAMETER_COUNT] = "no numbers of parameters are given"
        if parameters is not None:
            sizes = load_sizes(parameters)
            tables[PARAMETER_COUNT] = np.tile(
                [sizes.get(encoder, np.nan) for encoder in encoders], (len(truth), 1)
            )
            missing = sorted({encoder for encoder in encoders if encoder not in sizes})
            reasons[PARAMETER_COUNT] = f"not given for {', '.join(missing)}"
            if not missing:
                del reasons[PARAMETER_COUNT]
    if NEIGHBOURS not in tables:
        tables[NEIGHBOURS] = blank
        reasons[NEIGHBOURS] = "not among the scores; `tta-jax metrics` computes it"
    return tables, kinds | dict.fromkeys(ALWAYS, "baseline"), reasons
