"""Tables in files, or in shards of one table: CSV, Parquet, Arrow, JSON Lines. Columns
are read when they are asked for, a group of rows at a time.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import itertools
import json
import mmap
import os
import re
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tta_jax._internal.files import files_below, reading
from tta_jax._internal.text import one_line, read_json
from tta_jax._internal.warning import warn_of_data
from tta_jax.data.installed import require_package

TABLES = (".csv", ".tsv", ".parquet", ".arrow", ".feather", ".jsonl", ".ndjson")
_SEPARATED = (".csv", ".tsv")
_LINES = (".jsonl", ".ndjson")
_ARROW = (".arrow", ".feather")
_LINES_AT_ONCE = 1024
_NAMES_CLASSES = (b"class_names", b"huggingface")  # in the metadata of a schema
# Columns beside items or features and their labels.
BESIDE = ("split", "groups", "labelled")


class TextFormat(NamedTuple):
    """How texts are stored in a table.

    Attributes:
      separator: of .csv and .tsv, one character or "tab"; "," and a tab when None.
      encoding: of .csv, .tsv and JSON Lines, e.g. "latin-1"; UTF-8 when None.
    """

    separator: str | None = None
    encoding: str | None = None

    def check(self, suffixes: Collection[str], where: str) -> None:
        """Refuse what does not belong to files of these suffixes, or is unknown.

        Args:
          suffixes: of the files.
          where: the data, for messages.

        Raises:
          ValueError: names the argument.
        """
        texts = (*_SEPARATED, *_LINES)
        for name, given, of in (
            ("separator", self.separator, _SEPARATED),
            ("encoding", self.encoding, texts),
        ):
            if given is not None and not set(suffixes) & set(of):
                raise ValueError(
                    f"{name}: found {given!r}, but {where} is not {' or '.join(of)}; "
                    "leave it out"
                )
        if self.separator is not None:
            mark = "\t" if self.separator == "tab" else self.separator
            if len(mark) != 1 or not mark.isascii() or mark in '"\r\n':
                raise ValueError(
                    f"separator: found {self.separator!r}; give 'tab' or one ASCII "
                    "character, such as ';'"
                )
        if self.encoding is not None:
            try:
                "".encode(self.encoding)
            except (LookupError, ValueError):
                raise ValueError(
                    f"encoding: found {self.encoding!r}, which is unknown; give utf-8, "
                    "utf-16, latin-1, cp1252, shift_jis or another that Python knows"
                ) from None

    def character(self, suffix: str) -> str:
        """The separator of a file with this suffix."""
        usual = "\t" if suffix == ".tsv" else ","
        return "\t" if self.separator == "tab" else self.separator or usual

    def is_utf8(self) -> bool:
        return self.encoding is None or codecs.lookup(self.encoding).name == "utf-8"


class Group(NamedTuple):
    """Rows that are read together: how many, and what gives a column of them."""

    rows: int
    read: Callable[[str], list]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table in one or several files.

    Attributes:
      where: it, for messages.
      schema: of pyarrow.
      groups: all rows, in order.
      parts: the files, and how many rows each has.
      mixed: of columns with values of several kinds, what to say of them.
    """

    where: str
    schema: Any
    groups: list[Group]
    parts: list[tuple[str, int]]
    mixed: dict[str, str]

    def __len__(self) -> int:
        return sum(group.rows for group in self.groups)

    @property
    def names(self) -> list[str]:
        return [str(name) for name in self.schema.names]

    @property
    def hint(self) -> str:
        """What to add where a column is not found: a text with separators that is the
        name of the only column.
        """
        only = self.names[0] if len(self.names) == 1 else ""
        other = any(mark in only for mark in (",", ";", "\t", "|"))
        return "; is the separator another (--separator)?" if other else ""

    def check_column(self, name: str, argument: str) -> None:
        """Refuse a column that is not there, or holds values of several kinds.

        Raises:
          ValueError: names the argument, the table and its columns.
        """
        if name not in self.names:
            raise ValueError(
                f"{argument}: {self.where} has no column {name!r}; it has "
                f"{', '.join(self.names)}{self.hint}"
            )
        if name in self.mixed:
            raise ValueError(f"{argument}: {self.where} {self.mixed[name]}")

    def kind(self, name: str) -> Any:
        """The type of the values of a column, be it stored as a dictionary of them or
        not.
        """
        import pyarrow as pa

        kind = self.schema.field(name).type
        return kind.value_type if pa.types.is_dictionary(kind) else kind

    def whole(self, name: str) -> list:
        """All values of a column."""
        with readable("data", self.where):
            return [value for group in self.groups for value in group.read(name)]

    def items(self, name: str, turn: Callable[[Any], Any]) -> ColumnItems:
        """The values of a column as items, in random access; `turn` makes an item of a
        value.
        """
        return ColumnItems(self.groups, name, turn)

    def place(self, row: int) -> str:
        """What to call a row in a message; rows count from 0, in the file that they lie
        in.
        """
        if len(self.parts) == 1:
            return f"row {row}"
        for file, rows in self.parts:
            if row < rows:
                return f"row {row} of {file}"
            row -= rows
        raise IndexError(row)


class ColumnItems(Sequence):
    """Values of a column, one group of rows in memory at a time."""

    def __init__(self, groups: list[Group], name: str, turn: Callable[[Any], Any]):
        self._ends = np.cumsum([group.rows for group in groups])
        self._groups, self._name, self._turn = groups, name, turn
        self._held: tuple[int, list] = (-1, [])
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(i)
        group = int(np.searchsorted(self._ends, i, "right"))
        with self._lock:
            if self._held[0] != group:
                self._held = (group, self._groups[group].read(self._name))
            value = self._held[1][i - (int(self._ends[group - 1]) if group else 0)]
        return self._turn(value)


@contextlib.contextmanager
def readable(argument: str, where: str) -> Iterator[None]:
    """What readers of tables raise on damaged files, in one line that names them."""
    import pyarrow as pa

    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(
            f"encoding: {where} is not {error.encoding} ({error.reason}); name another "
            "(--encoding)"
        ) from None
    except (pa.ArrowException, OSError) as error:
        says = one_line(error)
        hint = "; name its encoding (--encoding latin-1)" if "UTF8" in says else ""
        raise ValueError(
            f"{argument}: {where} is damaged or of another format ({says}){hint}"
        ) from None


def table_files(folder: Path) -> list[Path]:
    """Files of tables in a folder and its sub-folders, of one format.

    Raises:
      ValueError: there are several formats.
    """
    found = [p for p in files_below(folder) if p.suffix.lower() in TABLES]
    first: dict[str, Path] = {}
    for path in found:
        first.setdefault(_format(path), path)
    if len(first) > 1:
        one, other = list(first.values())[:2]
        raise ValueError(
            f"data: folder {str(folder)!r} holds tables of several formats, "
            f"{str(one.relative_to(folder))!r} and {str(other.relative_to(folder))!r}; "
            "name one file, or a folder with one format"
        )
    return found


def _format(path: Path) -> str:
    suffix = path.suffix.lower()
    return next((of[0] for of in (_LINES, _ARROW) if suffix in of), suffix)


def open_table(
    files: Sequence[Path],
    where: Path | str,
    argument: str = "data",
    texts: TextFormat = TextFormat(),  # noqa: B008 (it is immutable)
) -> Table:
    """A table in files of one format; only CSV and JSON Lines are read through at once.

    Args:
      files: its shards, in their order; columns are matched by name.
      where: the file or folder, for messages.
      argument: what messages call it.
      texts: how they are stored.

    Raises:
      ValueError: names a file that is absent or damaged, two whose columns differ, and
        what does not belong to the format.
    """
    shown = repr(str(where))
    require_package("pyarrow", argument, f"{shown} needs")
    for file in files:
        if not file.is_file():
            raise ValueError(f"{argument}: there is no file {str(file)!r}")
    texts.check([file.suffix.lower() for file in files], shown)
    kind = _format(files[0])
    mixed: dict[str, str] = {}
    if kind in _LINES:
        schema, stored, mixed = _json_lines(files, argument, texts)
    else:
        read = {".parquet": _parquet, ".arrow": _arrow}.get(kind)
        schemas, stored = [], []
        for file in files:
            with readable(argument, repr(str(file))):
                found, groups = _separated(file, texts) if read is None else read(file)
            schemas.append(found)
            stored.append(groups)
            if len(set(found.names)) < len(found.names):
                raise ValueError(
                    f"column: {str(file)!r} has two columns of one name; rename one"
                )
        same_columns(schemas, files, argument)
        schema = schemas[0]
    base = Path(where)
    parts = [
        (
            str(file.relative_to(base)) if file.is_relative_to(base) else file.name,
            sum(group.rows for group in groups),
        )
        for file, groups in zip(files, stored, strict=True)
    ]
    return Table(shown, schema, list(itertools.chain(*stored)), parts, mixed)


def same_columns(schemas: Sequence[Any], files: Sequence[Path], argument: str) -> None:
    """Compare the schemas of the shards of a table.

    Raises:
      ValueError: names two files and the column in which they differ.
    """
    first, schema = files[0], schemas[0]
    for file, theirs in zip(files[1:], schemas[1:], strict=True):
        for name in (*schema.names, *theirs.names):
            for mine, has in ((file, theirs), (first, schema)):
                if name not in has.names:
                    raise _lacks(argument, mine, name, has.names)
            kinds = [str(s.field(name).type) for s in (schema, theirs)]
            if kinds[0] != kinds[1]:
                raise ValueError(
                    f"{argument}: column {name!r} is {kinds[0]} in {str(first)!r}, but "
                    f"{kinds[1]} in {str(file)!r}; write both with one type"
                )
        for key in _NAMES_CLASSES:
            said = [(s.metadata or {}).get(key) for s in (schema, theirs)]
            if said[0] != said[1]:
                raise ValueError(
                    f"{argument}: {str(first)!r} and {str(file)!r} name other classes "
                    f"in their metadata ({key.decode()}); write both with the same"
                )


def _lacks(argument: str, file: Path, name: str, has: Sequence[str]) -> ValueError:
    return ValueError(
        f"{argument}: {str(file)!r} has no column {name!r}, another file of its folder "
        f"has; its columns are {', '.join(has) or 'none'}"
    )


# -- formats ---------------------------------------------------------------------------


def parquet_file(path: Path) -> Any:
    """A `pyarrow.parquet.ParquetFile`, for `with`, that compares the checksums of pages
    where there are any.
    """
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)


def _parquet(path: Path) -> tuple[Any, list[Group]]:
    """Schema and groups of rows; the file is open only while it is read."""

    def reader(group: int, rows: int):
        def read(name: str) -> list:
            with reading("data", path, "a Parquet file"), parquet_file(path) as stored:
                column = stored.read_row_group(group, [name]).column(0)
                column.validate(full=True)
                if len(column) != rows:
                    raise ValueError(f"it declares {rows} rows and holds {len(column)}")
                return column.to_pylist()

        return read

    with parquet_file(path) as stored:
        counts = [
            stored.metadata.row_group(g).num_rows for g in range(stored.num_row_groups)
        ]
        groups = [Group(rows, reader(g, rows)) for g, rows in enumerate(counts)]
        return stored.schema_arrow, groups


def _arrow(path: Path) -> tuple[Any, list[Group]]:
    """Of Arrow's file format, which is that of Feather, too, or of its stream format.

    Batches stay mapped unless they are compressed in a stream.
    """
    import pyarrow as pa

    with path.open("rb") as stream:
        magic = stream.read(6)
    mapped = pa.memory_map(str(path))
    if magic == b"ARROW1":
        stored = pa.ipc.open_file(mapped)
        counts = [
            _valid(stored.get_batch(k)).num_rows
            for k in range(stored.num_record_batches)
        ]
        return stored.schema, [
            Group(
                rows,
                lambda name, k=k: _valid(stored.get_batch(k)).column(name).to_pylist(),
            )
            for k, rows in enumerate(counts)
        ]
    if magic[:4] == b"FEA1":
        raise pa.ArrowInvalid("version 1 of Feather; write it with version 2")
    stream = pa.ipc.open_stream(mapped)
    return stream.schema, batch_groups([_valid(batch) for batch in stream])


def _valid(batch: Any) -> Any:
    """The batch itself; its lengths and offsets are checked, which reading does not do,
    so that a damaged file cannot make Arrow read memory that is not its own.
    """
    batch.validate(full=True)
    return batch


def batch_groups(batches: Sequence[Any]) -> list[Group]:
    """Groups of rows of record batches."""
    return [
        Group(b.num_rows, lambda name, b=b: b.column(name).to_pylist()) for b in batches
    ]


def _separated(path: Path, texts: TextFormat) -> tuple[Any, list[Group]]:
    """Batches of rows of a .csv, which is turned into a temporary Arrow file, so that
    it need not fit into memory.
    """
    import pyarrow as pa

    mark = texts.character(path.suffix.lower())
    with _as_utf8(path, texts) as source:
        try:
            return _mapped_csv(source, mark, 1 << 24)
        except pa.ArrowInvalid as error:
            if "straddl" not in str(error):
                raise
            return _mapped_csv(source, mark, 1 << 30)  # a text longer than a block


def _mapped_csv(path: str, mark: str, block: int) -> tuple[Any, list[Group]]:
    import pyarrow as pa
    from pyarrow import csv

    options = {
        "read_options": csv.ReadOptions(block_size=block),
        "parse_options": csv.ParseOptions(delimiter=mark, newlines_in_values=True),
    }
    with csv.open_csv(path, **options) as stream:
        names = stream.schema.names
    # All columns are texts: neither is "NA" missing, nor "2016" a number.
    convert = csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
    )
    with tempfile.NamedTemporaryFile(suffix=".arrow") as buffer:
        with csv.open_csv(path, **options, convert_options=convert) as stream:
            schema = stream.schema
            with pa.ipc.new_file(buffer, schema) as sink:
                for batch in stream:
                    sink.write_batch(batch)
        buffer.flush()
        stored = pa.ipc.open_file(
            pa.memory_map(buffer.name)
        )  # stays mapped when its name is gone
    batches = [stored.get_batch(k) for k in range(stored.num_record_batches)]
    groups = [
        Group(
            b.num_rows,
            lambda name, b=b: b.column(schema.get_field_index(name)).to_pylist(),
        )
        for b in batches
    ]
    return schema, groups


@contextlib.contextmanager
def _as_utf8(path: Path, texts: TextFormat) -> Iterator[str]:
    """The name of a file with these texts in UTF-8, itself where it has them so."""
    if texts.is_utf8():
        with path.open("rb") as stream:
            begin = stream.read(2)
        if begin in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise ValueError(
                f"encoding: {str(path)!r} begins as UTF-16 does; name it (--encoding "
                "utf-16)"
            )
        yield str(path)
        return
    with tempfile.NamedTemporaryFile(suffix=path.suffix) as copy:
        with path.open(encoding=texts.encoding, newline="") as stream:
            while part := stream.read(1 << 20):
                copy.write(part.encode())
        copy.flush()
        yield copy.name


_KINDS = {str: "text", bool: "truth value", int: "whole number", float: "number"}


def _json_lines(
    files: Sequence[Path], argument: str, texts: TextFormat
) -> tuple[Any, list[list[Group]], dict[str, str]]:
    """The schema of JSON Lines, groups of rows of each file, and columns of mixed
    kinds. Types are found over all files; a field that a line lacks is null there.
    """
    import pyarrow as pa

    seen: dict[str, dict[str, str]] = {}  # of each field, kinds and where they begin
    fields: list[list[str]] = []
    stored = []
    for file in files:
        with readable(argument, repr(str(file))):
            source = _LineFile(file, texts)
        mine: dict[str, None] = {}
        for number, line in source.numbered():
            record = _record(line, file, number, argument)
            for name, value in record.items():
                mine.setdefault(name)
                kinds = seen.setdefault(name, {})
                if value is not None:
                    kind = _KINDS.get(type(value), "list or object")
                    kinds.setdefault(kind, f"line {number} of {file.name!r}")
        stored.append(source.groups())
        fields.append(list(mine))
    for file, has, groups in zip(files, fields, stored, strict=True):
        for name in seen:
            if name not in has and groups:
                raise _lacks(argument, file, name, has)
    other = pa.list_(pa.null())  # lists and objects, which nothing takes
    types = {
        frozenset(): pa.null(),
        frozenset(["text"]): pa.string(),
        frozenset(["truth value"]): pa.bool_(),
        frozenset(["whole number"]): pa.int64(),
        frozenset(["number"]): pa.float64(),
        frozenset(["whole number", "number"]): pa.float64(),
    }
    schema = pa.schema(
        [(name, types.get(frozenset(k), other)) for name, k in seen.items()]
    )
    mixed = {}
    for name, kinds in seen.items():
        if len(kinds) > 1 and frozenset(kinds) not in types:
            (one, here), (two, there) = list(kinds.items())[:2]
            mixed[name] = (
                f"has a {one} in {here}, but a {two} in {there}, column {name!r}; "
                "write all of one kind"
            )
    return schema, stored, mixed


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of an object.

    Raises:
      KeyError: one is there twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise KeyError(next(name for name in names if names.count(name) > 1))
    return found


def _record(line: bytes, file: Path, number: int, argument: str) -> dict[str, Any]:
    """A line of JSON.

    Raises:
      ValueError: it is no object; names the line.
    """
    try:
        record = json.loads(line, object_pairs_hook=_fields)
    except KeyError as error:
        raise ValueError(
            f"{argument}: {str(file)!r} has {error} twice in one object of line "
            f"{number}; leave one out"
        ) from None
    except (ValueError, RecursionError) as error:
        why = (
            "; name its encoding (--encoding latin-1)"
            if isinstance(error, UnicodeDecodeError)
            else "; is it cut off?"
        )
        raise ValueError(
            f"{argument}: {str(file)!r} has no JSON in line {number} "
            f"({one_line(error)}){why}"
        ) from None
    if not isinstance(record, dict):
        raise ValueError(
            f"{argument}: {str(file)!r} has a {type(record).__name__} in line "
            f"{number}; each line needs an object, such as "
            '{"text": "...", "label": "..."}'
        )
    return record


class _LineFile:
    """Lines of a file, blank ones left out, mapped and parsed in blocks when they are
    needed.
    """

    def __init__(self, path: Path, texts: TextFormat):
        # A mapping stays when the name of a copy is gone.
        with _as_utf8(path, texts) as name, open(name, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            self._bytes: Any = b""
            if size:
                self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self._blocks: list[tuple[int, int, int]] = []  # first byte, end, lines

    def numbered(self) -> Iterator[tuple[int, bytes]]:
        """Lines with their numbers from 1 on; finds out where blocks begin."""
        begin = count = at = number = 0
        while at < len(self._bytes):
            end = self._bytes.find(b"\n", at) + 1 or len(self._bytes)
            line, at, number = self._bytes[at:end], end, number + 1
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if line.strip():
                count += 1
                yield number, line
            if count == _LINES_AT_ONCE:
                self._blocks.append((begin, at, count))
                begin, count = at, 0
        if count:
            self._blocks.append((begin, at, count))

    def groups(self) -> list[Group]:
        def reader(begin: int, end: int):
            def read(name: str) -> list:
                block = self._bytes[begin:end].removeprefix(codecs.BOM_UTF8)
                lines = (line for line in block.split(b"\n") if line.strip())
                return [json.loads(line).get(name) for line in lines]

            return read

        return [Group(rows, reader(*block)) for *block, rows in self._blocks]


# -- labels ----------------------------------------------------------------------------


def default_label(
    columns: Sequence[str], usual: Sequence[str], column: str, where: str
) -> str | None:
    """The column of labels where none was named; None, with a warning, where there is
    no such column but others are.

    Args:
      columns: names of all columns.
      usual: names that a column of labels has.
      column: of the items or features.
      where: for messages.
    """
    if found := next((name for name in usual if name in columns), None):
        return found
    others = [name for name in columns if name not in (column, *BESIDE)]
    if not others:
        return None
    near = [
        name
        for name in others
        if name.strip().casefold() in usual
        or any(name.strip().casefold().endswith(f"_{word}") for word in usual)
        or name.strip().casefold() in ("target", "class", "category", "y")
    ]
    hint = f"did you mean {near[0]!r}? " if near else ""
    warn_of_data(
        f"label_column: {where} has no column {' or '.join(map(repr, usual))}, so its "
        f"items have no labels; {hint}it has {', '.join(map(repr, columns))}"
    )
    return None


def class_label(metadata: dict[bytes, bytes] | None, column: str) -> list[str] | None:
    """Class names of a column, from the metadata that Hugging Face data sets write;
    None where they say nothing of it.
    """
    try:
        said = read_json((metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in said[column]["names"]]
    except (LookupError, TypeError, ValueError):
        return None


def labels_of(table: Table, column: str, values: list | None = None) -> list:
    """Labels: texts, whole numbers or truth values, and None where there is no label
    (null, NaN, a blank text). Texts that all are whole numbers become such.

    Args:
      table: that has them.
      column: their name.
      values: those of some rows; of all rows when None.

    Raises:
      ValueError: the column holds something else.
    """
    import pyarrow as pa

    values = table.whole(column) if values is None else values
    kind = table.kind(column)
    if is_text(kind):
        return whole_numbers([v if v and v.strip() else None for v in values])
    if pa.types.is_floating(kind):
        values = [None if v is None or v != v else v for v in values]
        if all(v is None or float(v).is_integer() for v in values):
            return [None if v is None else int(v) for v in values]
    elif any(
        test(kind)
        for test in (pa.types.is_integer, pa.types.is_boolean, pa.types.is_null)
    ):
        return values
    raise ValueError(
        f"label_column: {table.where} has {kind} in column {column!r}; texts or whole "
        "numbers are needed"
    )


def whole_numbers(texts: list[str | None]) -> list:
    """Texts as whole numbers where all of them are, written alike: "7" or "7.0"."""
    known = [text for text in texts if text is not None]
    for end in ("", ".0"):
        if known and all(
            re.fullmatch(r"(0|-?[1-9][0-9]{0,17})" + re.escape(end), v) for v in known
        ):
            return [None if v is None else int(v.removesuffix(".0")) for v in texts]
    return list(texts)


def is_text(kind: Any) -> bool:
    """Whether a type of pyarrow holds texts."""
    import pyarrow as pa

    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
    )


def is_binary(kind: Any) -> bool:
    """Whether a type of pyarrow holds bytes."""
    import pyarrow as pa

    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
    )
