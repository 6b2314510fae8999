"""Where a scan lies: a Parquet data set, one file for each part, and a manifest that
says what was scanned. No mathematics.

    OUT/manifest.json                            configuration, key, versions, every
    task with a hash of its content OUT/pairs/stage=screen/part-*.parquet        a row
    for every pair, in no particular order OUT/pairs/stage=refine/part-*.parquet
    the pairs that were refined, same columns OUT/arrays/stage=.../part-*.parquet
    with `arrays=True`: assignment, class prior, label mixing of each pair

A part appears under its name when it is complete, so whatever happens, what is there is
whole, and `pair` says what is done.
Arrays are written before their rows: a scan that was killed in between leaves some that
are written again when it goes on.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

import numpy as np

from tta_jax._internal.files import reading, write_atomically
from tta_jax._internal.serialization import DAMAGE
from tta_jax._internal.text import one_line, read_json

FORMAT = 1
# Of the manifest.
_KINDS = {
    "config": dict,
    "versions": dict,
    "sources": list,
    "targets": list,
    "pairs": dict,
    "key": object,
}
STAGES = ("screen", "refine")
STATUS = ("ok", "failed")
_LIVES = (
    "config",
    "key",
    "sources",
    "targets",
    "pairs",
    "arrays",
)  # what may not change between two runs

# Figures are float64, nats where they are losses; null where a stage does not compute
# them.
NUMBERS = (
    "score",
    "target_loss",
    "target_accuracy",
    "tight",
    "directed",
    "oscillation",
    "lipschitz",
    "theorem",
    "relatedness",
    "star_directed",
    "star_theorem",
    "reweighted_source_loss",
    "label_mismatch",
    "transformed_source_loss",
    "wasserstein",
    "directed_wasserstein",
    "oscillation_wasserstein",
    "lipschitz_constant",
    "directed_wasserstein_lower",
    "oscillation_wasserstein_lower",
    "wasserstein_lower",
    "prior_entropy",
    "probe_loss",
    "probe_accuracy",
    "score_low",
    "score_high",
    "inner_loss",
    "ridge",
    "scale",
    "offset",
    "floor",
)


class DictionaryColumn(NamedTuple):
    """A column of text, as a scan has it: many rows, few words.

    Attributes:
      codes: `(n,)` int32, places in `names`; -1 for null.
      names: the words.
    """

    codes: np.ndarray
    names: Sequence[str]

    @classmethod
    def of(cls, values: Sequence[str | None]) -> DictionaryColumn:
        """From the words themselves."""
        names = list(dict.fromkeys(v for v in values if v is not None))
        place = {None: -1} | {name: k for k, name in enumerate(names)}
        return cls(np.array([place[v] for v in values], np.int32), names)

    @classmethod
    def joined(cls, parts: Sequence[DictionaryColumn]) -> DictionaryColumn:
        """One column from several."""
        if all(part.names is parts[0].names for part in parts):
            return cls(np.concatenate([part.codes for part in parts]), parts[0].names)
        names = list(dict.fromkeys(name for part in parts for name in part.names))
        place = {name: k for k, name in enumerate(names)}
        moved = [
            np.array([*(place[name] for name in part.names), -1], np.int32)[part.codes]
            for part in parts
        ]
        return cls(np.concatenate(moved), names)


def _arrow() -> Any:
    """pyarrow with what is used of it.

    Raises:
      ValueError: if it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.dataset
        import pyarrow.fs
        import pyarrow.parquet
    except ImportError:
        raise ValueError(
            "out: scans are stored as Parquet; install pyarrow with: pip install "
            "'tta-jax[scan]'"
        ) from None
    return pyarrow


def schema() -> Any:
    """Columns of a row. `status` is "ok" or "failed" (`reason` says why; figures are
    null, flags false).
    """
    pa = _arrow()
    word = pa.dictionary(pa.int32(), pa.string())
    return pa.schema(
        [
            ("pair", pa.int64()),
            ("encoder", word),
            ("source", word),
            ("target", word),
            ("status", word),
            ("reason", word),
            *((name, pa.float64()) for name in NUMBERS),
            ("informative", pa.bool_()),
            ("holds", pa.bool_()),
            ("items", pa.int32()),
            ("shared_items", pa.int32()),
            ("words", word),
            ("stopped", word),
        ]
    )


def array_schema() -> Any:
    """`assigned`: the source class of each target class; `prior`: D; `label_mixing`: B,
    a list of rows.
    """
    pa = _arrow()
    return pa.schema(
        [
            ("pair", pa.int64()),
            ("assigned", pa.list_(pa.int32())),
            ("prior", pa.list_(pa.float64())),
            ("label_mixing", pa.list_(pa.list_(pa.float64()))),
        ]
    )


class Folder:
    """A folder on any file system that Arrow or fsspec knows, by path or URI; files
    appear whole or not at all.

    Raises:
      ValueError: for a place that cannot be used.
    """

    def __init__(self, where: str | os.PathLike):
        fs = _arrow().fs
        self.where = os.fspath(where)
        scheme = self.where.partition("://")[0] if "://" in self.where else ""
        try:
            if scheme in ("", "file"):
                self.local: Path | None = Path(self.where.removeprefix("file://"))
                self._fs, self._root = fs.LocalFileSystem(), str(self.local)
            else:
                self.local = None
                self._fs, self._root = _remote(fs, self.where)
        except (ImportError, ValueError, OSError) as error:
            raise ValueError(
                f"out: {self.where!r} cannot be opened ({one_line(error)})"
            ) from None

    def __str__(self) -> str:
        return self.where

    def names(self, *path: str) -> list[str]:
        """Files in a sub-folder whose writing is complete, sorted; none where there is
        no such folder.
        """
        selector = _arrow().fs.FileSelector(self._join(*path), allow_not_found=True)
        found = [info for info in self._fs.get_file_info(selector) if info.is_file]
        return sorted(
            info.base_name for info in found if not info.base_name.startswith(".")
        )

    def exists(self) -> bool:
        kind = self._fs.get_file_info(self._root).type
        if kind == _arrow().fs.FileType.File:
            raise ValueError(f"out: {self.where!r} is a file; name a folder")
        return kind == _arrow().fs.FileType.Directory

    def read(self, *path: str) -> bytes:
        with self._fs.open_input_stream(self._join(*path)) as stream:
            return stream.read()

    def open(self, *path: str) -> Any:
        """A file that can be read in pieces."""
        return self._fs.open_input_file(self._join(*path))

    def write(self, content: bytes, *path: str) -> None:
        """One file, at once."""
        if self.local is not None:
            write_atomically(
                self.local.joinpath(*path), lambda stream: stream.write(content)
            )
            return
        final = self._join(*path)
        half = self._join(*path[:-1], f".{path[-1]}.{os.getpid()}")
        self._fs.create_dir(self._join(*path[:-1]), recursive=True)
        with self._fs.open_output_stream(half) as stream:
            stream.write(content)
        self._fs.move(half, final)

    def dataset(self, *path: str) -> Rows | None:
        """The Parquet data set below a sub-folder; None where there is none."""
        pa = _arrow()
        files = [
            self._join(*path, f"stage={stage}", name)
            for stage in STAGES
            for name in self.names(*path, f"stage={stage}")
        ]
        if not files:
            return None
        stage = pa.dataset.partitioning(
            pa.schema([("stage", pa.string())]), flavor="hive"
        )
        columns = schema() if path[-1] == "pairs" else array_schema()
        checked = pa.dataset.ParquetFragmentScanOptions(page_checksum_verification=True)
        with reading("path", self.where, "a scan"):
            found = pa.dataset.dataset(
                files,
                filesystem=self._fs,
                partitioning=stage,
                partition_base_dir=self._join(*path),
                schema=columns.append(pa.field("stage", pa.string())),
                format=pa.dataset.ParquetFileFormat(
                    default_fragment_scan_options=checked
                ),
            )
        return Rows(found, self.where)

    def _join(self, *path: str) -> str:
        return "/".join([self._root.rstrip("/"), *path])


class Rows:
    """Rows of a Parquet data set, checked when they are read.

    Raises:
      ValueError: from each method, for damage; names the folder.
    """

    def __init__(self, found: Any, where: str):
        self._found, self._where = found, where
        self.columns: list[str] = found.schema.names

    def to_table(self, **options: Any) -> Any:
        """As of `pyarrow.dataset.Dataset`."""
        with reading("path", self._where, "a scan"):
            return _validated(self._found.to_table(**options))

    def head(self, most: int, **options: Any) -> Any:
        """The first rows; as of `pyarrow.dataset.Dataset`."""
        with reading("path", self._where, "a scan"):
            return _validated(self._found.head(most, **options))

    def count_rows(self, **options: Any) -> int:
        """As of `pyarrow.dataset.Dataset`."""
        with reading("path", self._where, "a scan"):
            return self._found.count_rows(**options)


def _validated(table: Any) -> Any:
    table.validate(full=True)
    if "pair" in table.column_names and table["pair"].null_count:
        raise ValueError("a row has no pair")
    return table


def _remote(fs: Any, where: str) -> tuple[Any, str]:
    """Arrow's own file systems first, then any that fsspec knows."""
    try:
        return fs.FileSystem.from_uri(where)
    except (ValueError, NotImplementedError, OSError):
        import fsspec

        system, root = fsspec.core.url_to_fs(where)
        return fs.PyFileSystem(fs.FSSpecHandler(system)), root


@contextlib.contextmanager
def locked(folder: Folder) -> Iterator[None]:
    """No second scan writes to a local folder meanwhile, which is made where there is
    none.

    Raises:
      ValueError: if one does, or the folder cannot be made.
    """
    if folder.local is None:
        yield
        return
    import filelock

    folder.exists()  # refuses a file
    try:
        folder.local.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"out: {str(folder)!r} cannot be made ({one_line(error)})"
        ) from None
    lock = filelock.FileLock(folder.local / ".lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise ValueError(
            f"out: another scan is writing to {str(folder)!r}; wait for it or name "
            "another"
        ) from None
    except (OSError, NotImplementedError):
        pass  # a file system without locks; releasing what is not held does nothing
    try:
        yield
    finally:
        lock.release()


class Store:
    """A scan's folder while it is written.

    Raises:
      ValueError: for a folder that holds something else, or a scan of other tasks or
        another configuration.
    """

    def __init__(self, folder: Folder, manifest: dict[str, Any], process: int = 0):
        self.folder, self._process = folder, process
        manifest = {"format": FORMAT, "kind": "tta_jax scan", **manifest}
        if folder.exists() and "manifest.json" in folder.names():
            before = read_manifest(folder)
            for name in _LIVES:
                said = _difference(
                    name, before.get(name), json.loads(json.dumps(manifest[name]))
                )
                if said:
                    raise ValueError(
                        f"out: {str(folder)!r} holds another scan: {said}; name "
                        "another folder, or empty this one"
                    )
            self.versions_changed = _difference(
                "versions", before["versions"], manifest["versions"]
            )
        else:
            if folder.exists() and (folder.names() or folder.names("pairs")):
                raise ValueError(
                    f"out: {str(folder)!r} holds files but no scan; name a new or "
                    "empty folder"
                )
            self.versions_changed = ""
            if process == 0:
                folder.write(json.dumps(manifest, indent=1).encode(), "manifest.json")

    def done(self, stage: str) -> np.ndarray:
        """The pairs of a stage that have a row, sorted `(m,)` int64.

        Raises:
          ValueError: for a part that cannot be read.
        """
        found = [
            self._pairs(stage, name)
            for name in self.folder.names("pairs", f"stage={stage}")
        ]
        return np.sort(np.concatenate([np.zeros(0, np.int64), *found]))

    def _pairs(self, stage: str, name: str) -> np.ndarray:
        pa = _arrow()
        try:
            with self.folder.open(
                "pairs", f"stage={stage}", name
            ) as stream:  # one column of many
                return (
                    pa.parquet.ParquetFile(stream, page_checksum_verification=True)
                    .read(columns=["pair"])["pair"]
                    .to_numpy()
                )
        except DAMAGE as error:
            where = f"{self.folder}/pairs/stage={stage}/{name}"
            raise ValueError(
                f"out: {where!r} is damaged ({one_line(error)}); remove it to compute "
                "its pairs again"
            ) from None

    def write(
        self, stage: str, rows: dict[str, Any], arrays: dict[str, Any] | None = None
    ) -> None:
        """One part. Arrays first: a pair with a row has its arrays."""
        first, count = int(np.min(rows["pair"])), len(rows["pair"])
        name = f"part-{self._process:05d}-{first:012d}-{count}.parquet"
        if arrays is not None and len(arrays["pair"]):
            self.folder.write(
                _parquet(arrays, array_schema()), "arrays", f"stage={stage}", name
            )
        self.folder.write(_parquet(rows, schema()), "pairs", f"stage={stage}", name)


def _parquet(columns: dict[str, Any], wanted: Any) -> bytes:
    pa = _arrow()
    count = len(columns["pair"])
    made = []
    for field in wanted:
        values = columns.get(field.name)
        if values is None:
            made.append(pa.nulls(count, field.type))
        elif isinstance(values, DictionaryColumn):
            codes = pa.array(values.codes, pa.int32(), mask=values.codes < 0)
            made.append(
                pa.DictionaryArray.from_arrays(
                    codes, pa.array(list(values.names), pa.string())
                )
            )
        else:
            made.append(pa.array(values, field.type, from_pandas=True))
    sink = io.BytesIO()
    pa.parquet.write_table(
        pa.Table.from_arrays(made, schema=wanted),
        sink,
        compression="zstd",
        write_page_checksum=True,
    )
    return sink.getvalue()


def read_manifest(folder: Folder) -> dict[str, Any]:
    """The manifest of a scan's folder.

    Raises:
      ValueError: if there is none, or it is damaged or of a newer version.
    """
    with reading("path", str(folder), "a scan"):
        if not folder.exists() or "manifest.json" not in folder.names():
            raise ValueError(f"path: {str(folder)!r} holds no scan (no manifest.json)")
    try:
        found = read_json(folder.read("manifest.json"))
        version = found["format"]
        if not isinstance(version, int):
            raise TypeError("its format is not a number")
        if version <= FORMAT:
            _check_manifest(found)
    except DAMAGE as error:
        raise ValueError(
            f"path: the manifest of {str(folder)!r} is damaged ({one_line(error)})"
        ) from None
    if version > FORMAT:
        raise ValueError(
            f"path: {str(folder)!r} has format {version}, this version reads up to "
            f"{FORMAT}; upgrade"
        )
    return found


def _check_manifest(found: dict[str, Any]) -> None:
    """Check the types of what is read of a manifest.

    Raises:
      ValueError, LookupError, TypeError: something is not there, or of another type.
    """
    for name, kind in _KINDS.items():
        if not isinstance(found[name], kind):
            raise TypeError(f"{name} is {type(found[name]).__name__}")
    if not isinstance(found["pairs"]["number"], int):
        raise TypeError("the number of pairs is no number")
    for task in (*found["sources"], *found["targets"]):
        for name in ("name", "encoder", "content", "head", "problem"):
            if not isinstance(task[name], (str, NoneType)):
                raise TypeError(f"{name} of a task is {type(task[name]).__name__}")
        if not task["name"]:
            raise ValueError("a task has no name")
    if not found["sources"]:
        raise ValueError("it has no sources")


def _difference(name: str, before: Any, now: Any) -> str:
    """What differs, in words; "" if nothing does."""
    if before == now:
        return ""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                return f"its {name} {key} is {before.get(key)!r}, now {now.get(key)!r}"
    if (
        isinstance(before, list)
        and isinstance(now, list)
        and name in ("sources", "targets")
    ):
        return _task_difference(name, before, now)
    return f"its {name} is {before!r}, now {now!r}"


def _task_difference(name: str, before: Sequence[dict], now: Sequence[dict]) -> str:
    def label(task):
        return f"{task['encoder']}/{task['name']}" if task["encoder"] else task["name"]

    old, new = ({label(t): t for t in tasks} for tasks in (before, now))
    for verb, names in (
        ("lacks", new.keys() - old.keys()),
        ("has besides", old.keys() - new.keys()),
    ):
        if names:
            few = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            return f"it {verb} {len(names)} {name}: {few}"
    for key, task in new.items():
        if task["content"] != old[key]["content"]:
            return (
                f"the features, labels or class names of {name[:-1]} {key!r} have "
                "changed"
            )
        if task["head"] != old[key]["head"]:
            return f"the head of {name[:-1]} {key!r} is another one"
        if task["problem"] != old[key]["problem"]:
            return (
                f"{name[:-1]} {key!r} was {old[key]['problem'] or 'fine'!r}, now "
                f"{task['problem'] or 'fine'!r}"
            )
    return f"its {name} stood in another order"
