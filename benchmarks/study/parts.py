"""Rows of a part of the study with where they come from; as Parquet, and back."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import tomllib
from pathlib import Path
from typing import Any

from benchmarks.study.settings import Settings
from benchmarks.study.store import Store, Unit
from tta_jax._internal.files import write_atomically
from tta_jax.analysis.result import versions

HASHES = "sha256 of features"
MADE_BY = (
    "seed",
    "versions",
    "cores",
    "machine",
)  # of what is known about a part: what it was made by


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows, and what is known about them: units done and all there are, seed, versions,
    configuration, hashes of what was read.
    """

    rows: list[dict[str, Any]]
    about: dict[str, Any]


def gathered(settings: Settings, store: Store, units: list[Unit]) -> Part:
    """What has been done here."""
    paths = sorted({path for unit in units for path in unit.reads if path.exists()})
    about = {
        "done": (sum(map(store.done, units)), len(units)),
        "seed": settings.seed,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "versions": versions("pot", "scikit-learn"),
        "configuration": settings.path.read_text(),
        HASHES: {f"{path.parent.name}/{path.name}": store.hash(path) for path in paths},
    }
    return Part(list(store.rows(units)), about)


def write_part(path: Path, part: Part) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = dict.fromkeys(name for row in part.rows for name in row)
    table = pa.table({name: [row.get(name) for row in part.rows] for name in names})
    table = table.replace_schema_metadata({"study": json.dumps(part.about)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda stream: pq.write_table(table, stream))
    return path


def read_part(path: Path, settings: Settings | None = None) -> Part:
    """A part that `write_part` wrote; under another configuration than that of
    `settings` it is refused, but for the key of answers, on which no row depends.

    Raises:
      SystemExit: one line that names the file and what is wrong.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        about = json.loads(table.schema.metadata[b"study"])
        configuration = tomllib.loads(about["configuration"])
    except (OSError, pa.ArrowInvalid, TypeError, KeyError, ValueError) as error:
        raise SystemExit(f"{path}: no table of the study ({error})") from None
    now = settings and tomllib.loads(settings.path.read_text())
    if now and _without_answers(configuration) != _without_answers(now):
        raise SystemExit(
            f"{path}: made with another configuration than {settings.path}"
        )
    return Part(table.to_pylist(), about)


def _without_answers(configuration: dict[str, Any]) -> dict[str, Any]:
    """What rows depend on: all but which sources are related to a target."""
    groups = [
        {name: value for name, value in group.items() if name != "related"}
        for group in configuration.get("trained", [])
    ]
    return {**configuration, "trained": groups}
