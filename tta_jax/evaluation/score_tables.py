"""Tables of scores and truths as people keep them: long or wide, in files, data frames,
rows and scans.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tta_jax._internal.files import reading
from tta_jax._internal.tables import read_csv
from tta_jax._internal.text import printable
from tta_jax.scans.result import ScanResult

Model = tuple[str, ...]
PARAMETER_COUNT = "parameter_count"
_WORDS = ("encoder", "source", "target", "metric")
_NON_METRIC_COLUMNS = (
    "reason",
    "seconds",
    "stage",
    "status",
    "pair",
    "rank",
    "items",
    "shared_items",
    "informative",
    "holds",
    "warnings",
    "score_low",
    "score_high",
    "ridge",
    "scale",
    "offset",
    "floor",
    "prior_entropy",
    "lipschitz_constant",
    "directed_wasserstein_lower",
    "oscillation_wasserstein_lower",
    "wasserstein_lower",
)
_BLANKS = ("", "-", "na", "n/a", "nan", "none", "null", "<na>", "nat")
_TRUTHS = ("accuracy", "truth", "value", "probe_accuracy")
# What is better the less there is of it: figures of an analysis, and whatever has one
# of the words in its name.
_LOWER_IS_BETTER = (
    "tight",
    "directed",
    "oscillation",
    "lipschitz",
    "theorem",
    "label_mismatch",
    "wasserstein",
    "directed_wasserstein",
    "oscillation_wasserstein",
)
_LOWER_IS_BETTER_WORDS = {
    "loss",
    "error",
    "err",
    "nll",
    "brier",
    "rmse",
    "mse",
    "mae",
    "ece",
    "regret",
    "perplexity",
}


def lower_is_better(name: str) -> bool:
    """Whether a column is ranked from the least: it is negated."""
    return name.casefold() in _LOWER_IS_BETTER or bool(
        _LOWER_IS_BETTER_WORDS & set(re.split(r"[\W_]+", name.casefold()))
    )


class ScoreEntry(NamedTuple):
    """One number of a table, larger is better; NaN for a blank."""

    name: str
    encoder: str
    source: str
    target: str
    value: float
    reason: str

    def model(self, fields: tuple[str, ...]) -> Model:
        return tuple(getattr(self, field) for field in fields)


class ScoreTable(NamedTuple):
    """The figures of a table, and whether it is a scan."""

    figures: list[ScoreEntry]
    scan: bool = False

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(figure.name for figure in self.figures))


def read_score_table(given: Any, argument: str) -> ScoreTable:
    """The figures of a scan or its folder, a file, a data frame or rows, long or wide.

    Raises:
      ValueError: names the argument, and the row and column where there is one.
    """
    rows, scan = _rows(given, argument)
    file = isinstance(given, (str, os.PathLike))
    where = f"{argument}: {str(given)!r}" if file else argument
    if not rows:
        raise ValueError(f"{where}: it has no rows")
    if not any("target" in row for row in rows):
        raise ValueError(
            f"{where}: it has no column 'target'; there are "
            f"{', '.join(map(printable, rows[0]))}"
        )
    long = [bool(_word(row, "metric")) for row in rows]
    columns = _columns(
        [row for row, is_long in zip(rows, long, strict=True) if not is_long]
    )
    figures = []
    for number, (row, is_long) in enumerate(zip(rows, long, strict=True)):
        encoder, source, target = (
            _word(row, name) for name in ("encoder", "source", "target")
        )
        if not target:
            raise ValueError(f"{where}: row {number + 1} has no target")
        here = (
            [(_word(row, "metric"), "value")]
            if is_long
            else [(name, name) for name in columns]
        )
        for name, column in here:
            try:
                value = _number(row.get(column))
            except ValueError as error:
                raise ValueError(
                    f"{where}: row {number + 1}, column {column!r}: {error}"
                ) from None
            reason = _word(row, "reason") or (
                "" if math.isfinite(value) else "it is no finite number, or left blank"
            )
            figures.append(
                ScoreEntry(
                    name,
                    encoder,
                    source,
                    target,
                    -value if lower_is_better(name) else value,
                    reason,
                )
            )
    return ScoreTable(figures, scan)


def load_truth(
    sheet: ScoreTable, column: str | None
) -> tuple[dict[tuple[str, Model], float], tuple[str, ...], str]:
    """Truth by (target, model), the fields that name a model, and which column it is.

    Raises:
      ValueError: where it is not clear, contradicts itself, or names no models.
    """
    names = sheet.names
    if column is None:
        known = [name for name in names if name.casefold() in _TRUTHS] or names
        if not known or (len(known) > 1 and known == names):
            raise ValueError(
                "ground_truth: which column is the truth? There are "
                f"{', '.join(names) or 'none with numbers'}; name it "
                "accuracy, or give truth_column"
            )
        column = known[0]
    elif column not in names:
        raise ValueError(
            f"truth_column: there are no numbers in a column {column!r}; there are "
            f"{', '.join(names)}"
        )
    figures = [figure for figure in sheet.figures if figure.name == column]
    fields = tuple(
        name
        for name in ("encoder", "source")
        if any(getattr(figure, name) for figure in figures)
    )
    if not fields:
        raise ValueError(
            "ground_truth: it names no models; give a column encoder, or source"
        )
    found: dict[tuple[str, Model], float] = {}
    for figure in figures:
        model = figure.model(fields)
        if not all(model):
            raise ValueError(
                f"ground_truth: a row about {figure.target} has no "
                f"{fields[model.index('')]}; others have one"
            )
        before = found.get((figure.target, model), math.nan)
        # Rows of a scan repeat an encoder's probe for each of its sources.
        if (
            math.isfinite(before)
            and math.isfinite(figure.value)
            and before != figure.value
        ):
            raise ValueError(
                f"ground_truth: {'/'.join(model)} on {figure.target} has two values, "
                f"{before:g} and {figure.value:g}; keep one"
            )
        found[figure.target, model] = (
            figure.value if math.isfinite(figure.value) else before
        )
    if not any(map(math.isfinite, found.values())):
        raise ValueError(f"ground_truth: column {column!r} is empty")
    return found, fields, column


def load_scores(
    figures: Sequence[ScoreEntry],
    fields: tuple[str, ...],
    place: Mapping[tuple[str, Model], tuple[int, int]],
    shape: tuple[int, int],
    truth_name: str,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tables of all scores on the truth's targets and models, the best of several
    sources; and why those with blanks have them.

    A table may hold the truth itself, which is no score.

    Raises:
      ValueError: where nothing fits the truth, or a score has two values.
    """
    if not any(any(figure.model(fields)) for figure in figures):
        raise ValueError(
            f"scores: they name no {' or '.join(fields)}, which the truth does"
        )
    tables: dict[str, np.ndarray] = {}
    reasons: dict[str, dict[str, None]] = {}
    met: dict[tuple[str, str, str, str], float] = {}
    for figure in figures:
        if figure.name == truth_name:
            continue
        model = figure.model(fields)
        cells = [place[figure.target, model]] if (figure.target, model) in place else []
        if fields == ("encoder", "source") and not figure.source:
            # A metric that needs no source has no source in its rows: it is the same
            # for all of an encoder's.
            cells = [
                at
                for (where, other), at in place.items()
                if where == figure.target and other[0] == model[0]
            ]
        name = PARAMETER_COUNT if figure.name == "parameters" else figure.name
        table = tables.setdefault(name, np.full(shape, np.nan))
        if not cells:
            continue
        before = met.setdefault(
            (name, figure.encoder, figure.source, figure.target), figure.value
        )
        if (
            math.isfinite(before)
            and math.isfinite(figure.value)
            and before != figure.value
        ):
            raise ValueError(
                f"scores: {name} of {'/'.join(model)} on {figure.target} has two "
                f"values, {before:g} and {figure.value:g}; keep one"
            )
        for at in cells:
            if math.isfinite(figure.value):
                table[at] = np.fmax(table[at], figure.value)
            else:
                reasons.setdefault(name, {})[figure.reason] = None
    if not met:
        raise ValueError(
            (
                "scores: no row has a target and a model of the truth; names have to "
                "be the same, e.g. "
            )
            + ", ".join(
                f"{'/'.join(model)} on {target}" for target, model in list(place)[:2]
            )
        )
    said = {
        name: next(iter(found))
        + (f" (and {len(found) - 1} other reasons)" if len(found) > 1 else "")
        for name, found in reasons.items()
        if any(not math.isfinite(tables[name][at]) for at in place.values())
    }
    return tables, said


def load_sizes(given: Any) -> dict[str, float]:
    """Numbers of parameters of encoders, from a dictionary, or from a file, a data
    frame or rows `encoder, parameters`.

    Raises:
      ValueError: names `parameters`.
    """
    if isinstance(given, Mapping):
        pairs = [(str(name), value) for name, value in given.items()]
    else:
        rows, _ = _rows(given, "parameters")
        if not all("encoder" in row and "parameters" in row for row in rows):
            raise ValueError(
                "parameters: give a dictionary encoder -> number, or rows encoder, "
                "parameters"
            )
        pairs = [(_word(row, "encoder"), row["parameters"]) for row in rows]
    found: dict[str, float] = {}
    for name, value in pairs:
        try:
            size = _number(value)
        except ValueError as error:
            raise ValueError(f"parameters: {name}: {error}") from None
        if found.setdefault(name, size) != size:
            raise ValueError(
                f"parameters: {name} has two values, {found[name]:g} and {size:g}; "
                "keep one"
            )
    return found


# -- rows ------------------------------------------------------------------------------


def _rows(given: Any, argument: str) -> tuple[list[dict[str, Any]], bool]:
    """Rows of whatever was given, and whether it was a scan."""
    if isinstance(given, (str, os.PathLike)):
        path = Path(given)
        with reading(argument, path, "a table or a scan"):
            if path.is_dir() or "://" in str(given):
                return _rows(ScanResult.load(given), argument)
            given = _read(path, argument)
    if isinstance(given, ScanResult):
        count = given.counts()
        stage = "refine" if 0 < count["screened"] <= count["refined"] else "screen"
        return given.table(stage).to_pylist(), True
    for method, arguments in (
        ("to_pylist", ()),
        ("to_dicts", ()),
        ("to_dict", ("records",)),
    ):  # Arrow, Polars, pandas
        if hasattr(given, "columns") and hasattr(given, method):
            given = getattr(given, method)(*arguments)
            break
    if (
        not isinstance(given, Sequence)
        or isinstance(given, str)
        or not all(isinstance(row, Mapping) for row in given)
    ):
        raise ValueError(
            f"{argument}: found {type(given).__name__}; give rows, a data frame, a "
            "scan, or a .csv or .parquet file"
        )
    return [dict(row) for row in given], False


def _read(path: Path, argument: str) -> list[dict[str, Any]]:
    if not path.is_file():
        raise ValueError(f"{argument}: there is no file or scan {str(path)!r}")
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(path, page_checksum_verification=True)
        table.validate(full=True)
        return table.to_pylist()
    if path.suffix != ".csv":
        raise ValueError(f"{argument}: {str(path)!r} is neither .csv nor .parquet")
    rows, header = read_csv(path, argument)
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise ValueError(f"{argument}: {str(path)!r} has two columns {twice[0]!r}")
    for number, row in enumerate(rows):
        if None in row or None in row.values():
            raise ValueError(
                f"{argument}: row {number + 1} of {str(path)!r} has another number of "
                "columns than its header"
            )
    return rows


def _blank(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().casefold() in _BLANKS
    try:
        return value is None or bool(value != value)  # NaN
    except TypeError:  # pandas' NA is neither equal nor unequal to itself
        return True


def _number(value: Any) -> float:
    """A figure; NaN for a blank.

    Raises:
      ValueError: for what is no number.
    """
    if _blank(value):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is no number") from None


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and bool(_number(value) or True)
    except ValueError:
        return False


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the columns that hold figures: most of what is in them are numbers."""
    found = []
    for name in dict.fromkeys(name for row in rows for name in row):
        cells = [row[name] for row in rows if not _blank(row.get(name))]
        numbers = sum(map(_is_number, cells))
        if (
            name not in (*_WORDS, *_NON_METRIC_COLUMNS)
            and numbers
            and 2 * numbers >= len(cells)
        ):
            found.append(name)
    return found


def _word(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return "" if not isinstance(value, str) and _blank(value) else str(value).strip()
