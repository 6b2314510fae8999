"""Which score should be trusted: every score of a table against what fine-tuned or probed models reached.

A table is long, rows `encoder, target, metric, value`, or wide, one column for each score; files, data frames and scans are read
alike. The models that a target chooses among are the encoders, or pairs of encoder and source where the truth tells them apart; a
score that has several sources for a model is that of the best.
"""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tta_jax import archive, ranking
from tta_jax.archive import finite, storable
from tta_jax.metrics.pooled import POOLED, pool
from tta_jax.ranking import LEAST_IS_BEST, STATISTICS, Comparison, Estimate
from tta_jax.scans.result import ScanResult
from tta_jax.task import Seed, seed_of

_WORDS = ("encoder", "source", "target")
_ASIDE = (
    "reason", "seconds", "stage", "status", "pair", "rank", "items", "shared_items", "informative", "holds", "warnings",
    "score_low", "score_high", "ridge", "scale", "offset", "prior_entropy", "lipschitz_constant", "oscillation_wasserstein_lower",
    "wasserstein_lower",
)  # fmt: skip
# What the analysis and the probes report where less is better: ranked from the least.
NEGATED = (
    "loss", "target_loss", "tight", "oscillation", "lipschitz", "theorem", "inner_loss", "probe_loss", "reweighted_source_loss",
    "transformed_source_loss", "label_mismatch", "wasserstein", "oscillation_wasserstein", "calibration_error", "brier", "regret",
    "error",
)  # fmt: skip
_TRUTHS = ("accuracy", "truth", "value", "probe_accuracy")
STATIC, SIZE, NEIGHBOURS = "mean_elsewhere", "parameter_count", "knn"
ALWAYS = (STATIC, SIZE, NEIGHBOURS)


@storable
@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """Every score against the truth. Build it with `evaluate`.

    Attributes:
      targets, models: names; "encoder/source" where sources tell models apart.
      truth: `(T, M)`, larger is better; NaN for a blank.
      truth_name: of the column that it came from.
      scores: name -> `(T, M)`, larger is better.
      kinds: name -> "score", "baseline" (always in the table) or "pooled" (depends on which models are in it).
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

    def table(self, statistic: str = "weighted_tau", target: str | None = None) -> list[dict[str, Any]]:
        """A row for each score, best first: the statistic with its interval, what choosing by the score costs, and its blanks.

        Args:
          statistic: of `ranking.STATISTICS`.
          target: the statistic of this target alone; the mean over the targets, with intervals, when None.

        Raises:
          ValueError: for an unknown statistic or target.
        """
        self._check(statistic)
        if target is not None and target not in self.targets:
            raise ValueError(f"target: there is no target {target!r}; there are {', '.join(self.targets[:12])}")
        place = None if target is None else self.targets.index(target)
        known = np.isfinite(self.truth) if place is None else np.isfinite(self.truth[place])
        rows = []
        for name, found in self.estimates.items():
            one = found[statistic]
            value = lambda which: found[which].value if place is None else float(found[which].per_target[place])
            there = np.isfinite(self.scores[name] if place is None else self.scores[name][place]) & known
            row: dict[str, Any] = {"score": name, "kind": self.kinds[name], statistic: value(statistic)}
            if place is None:
                row |= {"low": one.low, "high": one.high}
            row |= {which: value(which) for which in ("regret_1", "relative_accuracy") if which != statistic}
            if place is None:
                row["targets"] = one.targets
            row |= {"blanks": int((known & ~there).sum()), "reason": self.reasons.get(name, "")}
            rows.append(row)
        sign = 1 if statistic in LEAST_IS_BEST else -1
        worst = lambda row: np.inf if np.isnan(row[statistic]) else sign * row[statistic]
        return sorted(rows, key=lambda row: (worst(row), row["score"]))

    def compare(self, first: str, second: str, statistic: str = "weighted_tau") -> Comparison:
        """Paired test of two scores, on the models where neither is a blank.

        Raises:
          ValueError: for an unknown score or statistic.
        """
        self._check(statistic)
        for argument, name in (("first", first), ("second", second)):
            if name not in self.scores:
                raise ValueError(f"{argument}: there is no score {name!r}; there are {', '.join(self.scores)}")
        return ranking.compare(
            self.scores[first], self.scores[second], self.truth, statistic,
            over=self.over, replicates=self.replicates, interval=self.interval, key=Seed(self.entropy),
        )  # fmt: skip

    def chosen_elsewhere(self, statistic: str = "weighted_tau") -> list[dict[str, Any]]:
        """For each target the score that does best on the other targets, and how it does on this one: an honest choice of score.

        Empty with a single target.

        Raises:
          ValueError: for an unknown statistic.
        """
        self._check(statistic)
        sign = -1 if statistic in LEAST_IS_BEST else 1
        rows = []
        for place, target in enumerate(self.targets):
            others = {name: found[statistic].without[place] for name, found in self.estimates.items()}
            others = {name: value for name, value in others.items() if np.isfinite(value)}
            if others:
                best = max(others, key=lambda name: (sign * others[name], name))
                here = {
                    which: float(self.estimates[best][which].per_target[place]) for which in (statistic, "regret_1")
                }
                rows.append({"target": target, "score": best, "elsewhere": float(others[best]), **here})
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values; NaN becomes None."""
        estimates = {
            name: {
                statistic: {
                    "value": one.value, "low": one.low, "high": one.high, "per_target": one.per_target.tolist(),
                    "without": one.without.tolist(),
                }
                for statistic, one in found.items()
            }
            for name, found in self.estimates.items()
        }  # fmt: skip
        return finite(
            {
                "targets": list(self.targets), "models": list(self.models), "truth_name": self.truth_name,
                "truth": self.truth.tolist(), "scores": {name: table.tolist() for name, table in self.scores.items()},
                "kinds": self.kinds, "estimates": estimates, "reasons": self.reasons, "over": self.over,
                "replicates": self.replicates, "interval": self.interval,
            }
        )  # fmt: skip

    def save(self, path: str | os.PathLike) -> None:
        """Write to one file, atomically."""
        archive.save(path, self)

    @staticmethod
    def load(path: str | os.PathLike) -> Evaluation:
        """Read what `save` wrote.

        Raises:
          ValueError: if it is no such file.
        """
        found = archive.load(path)
        if not isinstance(found, Evaluation):
            raise ValueError(f"path: {str(path)!r} holds {type(found).__name__}, not an evaluation")
        return found

    def notes(self, statistic: str = "weighted_tau") -> list[str]:
        """What a reader of the table should know: the best score against the baselines, the honest choice, what is thin."""
        self._check(statistic)
        rows = [row for row in self.table(statistic) if np.isfinite(row[statistic])]
        lines = []
        best = next((row["score"] for row in rows if row["kind"] != "baseline"), None)
        for other in ALWAYS if best else ():
            if best and self.estimates[other][statistic].targets:
                test = self.compare(best, other, statistic)
                lines.append(
                    f"{best} less {other}: {test.difference:+.3f} [{test.low:+.3f}, {test.high:+.3f}], better on "
                    f"{test.first_better} targets, worse on {test.second_better}, p = {test.p_value:.2g} (sign flips)"
                )
        chosen = self.chosen_elsewhere(statistic)
        if chosen:
            mean = lambda name: np.nanmean([row[name] for row in chosen])
            names = sorted({row["score"] for row in chosen})
            figures = [f"{which} {mean(which):.3f}" for which in dict.fromkeys((statistic, "regret_1"))]
            lines.append(f"choosing the score by the other targets ({', '.join(names)}) gives {', '.join(figures)}")
        if len(self.targets) < 5:
            lines.append(
                f"{len(self.targets)} target{'s' * (len(self.targets) > 1)}: no p-value can be below "
                f"{2.0 ** (1 - len(self.targets)):.2g}"
            )
        if len(self.models) < 5:
            lines.append(f"{len(self.models)} models: rankings of so few agree by chance; intervals are wide")
        for reason in dict.fromkeys(self.reasons.values()):
            names = [name for name, why in self.reasons.items() if why == reason]
            lines.append(f"blanks of {', '.join(names)}: {reason}")
        return lines

    def summary(self, statistic: str = "weighted_tau") -> str:
        """The table and what to make of it, as text."""
        rows = self.table(statistic)
        number = lambda value, digits=3: "" if not np.isfinite(value) else f"{value:.{digits}f}"
        lines = [
            f"{len(self.scores)} scores, {len(self.targets)} targets, {len(self.models)} models; truth: {self.truth_name}; "
            f"{self.interval:.0%} intervals over {'targets and models' if self.over == 'both' else self.over}",
            "",
            f"{'score':<24} {statistic:>22} {'interval':>18} {'regret':>8} {'blanks':>7}",
        ]
        for row in rows:
            regret = self.estimates[row["score"]]["regret_1"].value
            span = f"[{number(row['low'])}, {number(row['high'])}]" if np.isfinite(row["low"]) else ""
            name = row["score"] + {"baseline": " *", "pooled": " (pool)"}.get(row["kind"], "")
            lines.append(
                f"{name:<24} {number(row[statistic]):>22} {span:>18} {number(regret, 4):>8} {row['blanks']:>7}"
            )
        lines += ["* baseline: always in the table", "", *self.notes(statistic)]
        return "\n".join(lines)

    @staticmethod
    def _check(statistic: str) -> None:
        if statistic not in STATISTICS:
            raise ValueError(f"statistic: there is no {statistic!r}; choose among {', '.join(STATISTICS)}")


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
    """Every score against the truth, with the static rankers and k-NN, blanks and intervals.

    Args:
      scores: a scan (`ScanResult` or its folder; refined figures where every pair has them, else screened), a file (.csv or
        .parquet), a data frame, or rows as of `metrics.tabulate`; or a list of several of these.
      ground_truth: a file, a data frame or rows `encoder[, source], target, accuracy`, as of `probe.ground_truth`. For a scan of
        several encoders it may be left out: the accuracy of the probes that the scan has fitted.
      truth_column: which column is the truth; accuracy, truth, value, probe_accuracy or the only number when None. Losses and
        errors are negated.
      parameters: numbers of parameters of the encoders: a dictionary, or rows or a file `encoder, parameters`. A column
        "parameters" among the scores does as well.
      over, replicates, interval, key: as in `ranking.correlate`.
      progress: called with what is being computed and the share that is done.

    Raises:
      ValueError: names the argument, what was found and what to do.
    """
    several = isinstance(scores, (list, tuple)) and not all(isinstance(part, Mapping) for part in scores)
    loaded = [_rows(part, "scores") for part in (scores if several else [scores])]
    if ground_truth is None:
        if len(loaded) != 1 or not loaded[0][1]:
            raise ValueError("ground_truth: only a scan has a truth of its own; give rows encoder, target, accuracy")
        ground_truth, truth_column = [{**row, "source": ""} for row in loaded[0][0]], truth_column or "probe_accuracy"
    truth, fields, truth_name = _truth(_rows(ground_truth, "ground_truth")[0], truth_column)
    targets = tuple(dict.fromkeys(target for target, _ in truth))
    models = tuple(dict.fromkeys(model for _, model in truth))
    if len(models) < 2:
        raise ValueError(
            f"ground_truth: it has one model ({'/'.join(*models)}); a ranking needs at least two encoders, or a column that tells "
            "sources apart"
        )
    rows_of, columns_of = ({name: number for number, name in enumerate(names)} for names in (targets, models))
    place = {(t, m): (rows_of[t], columns_of[m]) for t, m in truth}
    table = np.full((len(targets), len(models)), np.nan)
    for pair, value in truth.items():
        table[place[pair]] = value
    found, reasons = _scores([row for rows, _ in loaded for row in rows], fields, place, table.shape, truth_name)
    encoders = [model[0] if fields[0] == "encoder" else "" for model in models]
    found, kinds, missing = _with_baselines(found, table, encoders, parameters)
    reasons = {name: why for name, why in (reasons | missing).items() if name in found}
    entropy = seed_of(jax.random.key(0) if key is None else key).generate_state(4).tolist()
    estimates: dict[str, dict[str, Estimate]] = {}
    for number, (name, values) in enumerate(found.items()):
        if progress is not None:
            progress(name, number / len(found))
        estimates[name] = ranking.correlate(
            values, table, over=over, replicates=replicates, interval=interval, key=Seed(entropy)
        )
    return Evaluation(
        targets, tuple("/".join(model) for model in models), table, truth_name, found, kinds, estimates, reasons, over,
        int(replicates), float(interval), entropy,
    )  # fmt: skip


# -- tables ------------------------------------------------------------------------------------------------------------


def _rows(given: Any, argument: str) -> tuple[list[dict[str, Any]], bool]:
    """Rows of whatever was given, and whether it was a scan."""
    if isinstance(given, (str, os.PathLike)):
        path = Path(given)
        if path.is_dir() or "://" in str(given):
            return _rows(ScanResult.load(given), argument)
        given = _read(path, argument)
    if isinstance(given, ScanResult):
        count = given.counts()
        stage = "refine" if 0 < count["screened"] <= count["refined"] else "screen"
        return given.table(stage).to_pylist(), True
    if hasattr(given, "to_pylist"):
        given = given.to_pylist()
    elif hasattr(given, "to_dict") and not isinstance(given, Mapping):
        given = given.to_dict("records")
    if not isinstance(given, Sequence) or isinstance(given, str) or not all(isinstance(row, Mapping) for row in given):
        raise ValueError(
            f"{argument}: found {type(given).__name__}; give rows, a data frame, a scan, or a .csv or .parquet file"
        )
    if not given:
        raise ValueError(f"{argument}: it has no rows")
    rows = [dict(row) for row in given]
    if not any("target" in row for row in rows):
        raise ValueError(f"{argument}: it has no column 'target'; there are {', '.join(map(str, rows[0]))}")
    return rows, False


def _read(path: Path, argument: str) -> list[dict[str, Any]]:
    if not path.is_file():
        raise ValueError(f"{argument}: there is no file or scan {str(path)!r}")
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.read_table(path).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{argument}: cannot read {str(path)!r} ({archive.one_line(error)})") from None
    if path.suffix != ".csv":
        raise ValueError(f"{argument}: {str(path)!r} is neither .csv nor .parquet")
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{argument}: {str(path)!r} is no CSV file ({archive.one_line(error)})") from None
    for number, row in enumerate(rows):
        if None in row or None in row.values():
            raise ValueError(
                f"{argument}: row {number + 1} of {str(path)!r} has another number of columns than its header"
            )
    return rows


def _number(value: Any) -> float:
    """A figure; NaN for a blank, None for what is no number."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return float("nan")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is no number") from None


def _is_number(values: Sequence[Any]) -> bool:
    try:
        found = [_number(value) for value in values if not isinstance(value, bool)]
    except ValueError:
        return False
    return any(np.isfinite(found))


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the columns that hold figures."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [n for n in names if n not in (*_WORDS, *_ASIDE, "metric") and _is_number([row.get(n) for row in rows])]


def _word(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return "" if value is None else str(value)


Model = tuple[str, ...]


def _model(row: Mapping[str, Any], fields: tuple[str, ...]) -> Model:
    return tuple(_word(row, name) for name in fields)


def _truth(
    rows: list[dict[str, Any]], column: str | None
) -> tuple[dict[tuple[str, Model], float], tuple[str, ...], str]:
    """Truth by (target, model), the columns that name a model, and what the truth is."""
    columns = _columns(rows)
    if column is None:
        known = [name for name in _TRUTHS if name in columns] or columns
        if not known or (len(known) > 1 and known == columns):
            raise ValueError(
                f"ground_truth: which column is the truth? There are {', '.join(columns) or 'none with numbers'}; name it "
                "accuracy, or give truth_column"
            )
        column = known[0]
    elif column not in columns:
        raise ValueError(f"truth_column: there are no numbers in a column {column!r}; there are {', '.join(columns)}")
    fields = tuple(name for name in ("encoder", "source") if any(_word(row, name) for row in rows))
    if not fields:
        raise ValueError("ground_truth: it names no models; give a column encoder, or source")
    found: dict[tuple[str, Model], float] = {}
    for number, row in enumerate(rows):
        pair = (_word(row, "target"), _model(row, fields))
        try:
            value = _number(row.get(column))
        except ValueError as error:
            raise ValueError(f"ground_truth: row {number + 1}, column {column!r}: {error}") from None
        value = -value if column in NEGATED else value
        # Rows of a scan repeat an encoder's probe for each of its sources.
        if pair in found and np.isfinite(found[pair]) and np.isfinite(value) and found[pair] != value:
            raise ValueError(
                f"ground_truth: {'/'.join(pair[1])} on {pair[0]} has two values, {found[pair]:g} and {value:g}; keep one"
            )
        if pair not in found or np.isfinite(value):
            found[pair] = value
    if not any(np.isfinite(value) for value in found.values()):
        raise ValueError(f"ground_truth: column {column!r} is empty")
    return found, fields, column


def _scores(
    rows: list[dict[str, Any]],
    fields: tuple[str, ...],
    place: Mapping[tuple[str, Model], tuple[int, int]],
    shape: tuple[int, int],
    truth_name: str,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tables of all scores on the truth's targets and models, the best of several sources; and why they have blanks.

    A wide table may hold the truth itself, which is no score.
    """
    if not any(any(_word(row, name) for name in fields) for row in rows):
        raise ValueError(f"scores: they name no {' or '.join(fields)}, which the truth does")
    long = [row for row in rows if row.get("metric") not in (None, "")]
    wide = [row for row in rows if row.get("metric") in (None, "")]
    figures = [(str(row["metric"]), row, row.get("value")) for row in long]
    figures += [
        (SIZE if name == "parameters" else name, row, row.get(name))
        for name in _columns(wide)
        if name != truth_name
        for row in wide
    ]
    tables: dict[str, np.ndarray] = {}
    reasons: dict[str, dict[str, None]] = {}
    met = 0
    for name, row, given in figures:
        # A metric that needs no source has no source in its rows: it is the same for all of an encoder's.
        target, model = _word(row, "target"), _model(row, fields)
        cells = [place[target, model]] if (target, model) in place else []
        if fields == ("encoder", "source") and not model[1]:
            cells = [at for (where, other), at in place.items() if where == target and other[0] == model[0]]
        met += len(cells)
        try:
            value = _number(given)
        except ValueError as error:
            raise ValueError(f"scores: {name} of {'/'.join(model)} on {target}: {error}") from None
        value = -value if name in NEGATED else value
        table = tables.setdefault(name, np.full(shape, np.nan))
        for at in cells:
            if np.isfinite(value):
                table[at] = np.fmax(table[at], value)
            elif row.get("reason"):
                reasons.setdefault(name, {})[str(row["reason"])] = None
    if not met:
        raise ValueError(
            "scores: no row has a target and a model of the truth; names have to be the same, e.g. "
            + ", ".join(f"{'/'.join(model)} on {target}" for target, model in list(place)[:2])
        )
    said = {
        name: next(iter(found)) + (f" (and {len(found) - 1} other reasons)" if len(found) > 1 else "")
        for name, found in reasons.items()
    }
    return tables, said


def _with_baselines(
    found: dict[str, np.ndarray], truth: np.ndarray, encoders: list[str], parameters: Any
) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, str]]:
    """Scores with pooled ones and the baselines that are always there, their kinds, and why baselines are blank."""
    tables, reasons = dict(found), {}
    kinds = dict.fromkeys(tables, "score")
    for name, weights in POOLED.items():
        if name not in tables and all(part in tables for part in weights):
            # Over the models that have every part.
            parts = {part: tables[part] for part in weights}
            whole = np.all([np.isfinite(part) for part in parts.values()], axis=0)
            tables[name] = np.stack(
                [pool(name, {k: np.where(row, v[i], np.nan) for k, v in parts.items()}) for i, row in enumerate(whole)]
            )
            kinds[name] = "pooled"
            if not np.isfinite(tables[name]).all():
                reasons[name] = "a part is missing, or the same for all models"
    blank = np.full(truth.shape, np.nan)
    tables[STATIC] = ranking.mean_elsewhere(truth)
    if not np.isfinite(tables[STATIC]).any():
        reasons[STATIC] = "there is one target"
    if SIZE not in tables:
        tables[SIZE] = blank
        reasons[SIZE] = "no numbers of parameters are given"
        if parameters is not None:
            sizes = _sizes(parameters)
            tables[SIZE] = np.tile([sizes.get(encoder, np.nan) for encoder in encoders], (len(truth), 1))
            missing = sorted({encoder for encoder in encoders if encoder not in sizes})
            reasons[SIZE] = f"not given for {', '.join(missing)}"
            if not missing:
                del reasons[SIZE]
    if NEIGHBOURS not in tables:
        tables[NEIGHBOURS] = blank
        reasons[NEIGHBOURS] = "not among the scores; `tta-jax metrics` computes it"
    return tables, kinds | dict.fromkeys(ALWAYS, "baseline"), reasons


def _sizes(parameters: Any) -> dict[str, float]:
    if not isinstance(parameters, Mapping):
        if isinstance(parameters, (str, os.PathLike)):
            parameters = _read(Path(parameters), "parameters")
        try:
            parameters = {str(row["encoder"]): row["parameters"] for row in parameters}
        except (TypeError, KeyError):
            raise ValueError("parameters: give a dictionary encoder -> number, or rows encoder, parameters") from None
    try:
        return {str(name): _number(value) for name, value in parameters.items()}
    except ValueError as error:
        raise ValueError(f"parameters: {error}") from None
