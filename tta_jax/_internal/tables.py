"""Tables in CSV, safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tta_jax._internal.files import reading
from tta_jax._internal.text import printable

# What a spreadsheet takes for a formula, and what has been quoted before.
_FORMULA, _QUOTED = re.compile("'*[=+@-]"), re.compile("'+[=+@-]")


def write_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV text of rows with the same keys, each in a line of its own.

    Control characters become escapes, and texts that a spreadsheet would take for a
    formula get an apostrophe in front, which `read_csv` takes away.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(map(_cell, rows[0]))
    writer.writerows(map(_cell, row.values()) for row in rows)
    return stream.getvalue()


def read_csv(path: Path, argument: str) -> tuple[list[dict[Any, Any]], list[str]]:
    """Rows and names of the columns of a CSV file with a header; cells are texts.

    A row that is longer than the header has the rest under None, a shorter one has
    None for what is not there.

    Args:
      path: of the file, in UTF-8.
      argument: what messages call it.

    Raises:
      ValueError: it is no such file; names it.
    """
    with (
        reading(argument, path, "a CSV file"),
        path.open(newline="", encoding="utf-8-sig") as stream,
    ):
        reader = csv.DictReader(stream)
        header = [_said(name) for name in reader.fieldnames or ()]
        reader.fieldnames = header
        return [{k: _said(v) for k, v in row.items()} for row in reader], header


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if _FORMULA.match(text) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _said(value: Any) -> Any:
    quoted = isinstance(value, str) and _QUOTED.match(value)
    return value[1:] if quoted else value
