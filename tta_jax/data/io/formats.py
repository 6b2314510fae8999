"""How each format holds features and what belongs to them: one reader and one writer a
format.

Readers give a dictionary of arrays, class names and provenance as they find them, and
raise ValueError for damage. Writers take features as anything with shape, dtype and
slices of rows, and write them block by block.
"""

from __future__ import annotations

import itertools
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from tta_jax._internal.files import reading, write_atomically
from tta_jax._internal.limits import check_expansion
from tta_jax._internal.serialization import (
    NpyHeader,
    check_characters,
    npy_header,
    read_arrays,
)
from tta_jax._internal.text import read_json
from tta_jax.data.installed import require_package
from tta_jax.data.io.tables import (
    Table,
    TextFormat,
    class_label,
    default_label,
    labels_of,
    open_table,
    parquet_file,
    same_columns,
)
from tta_jax.data.records import encoded_groups
from tta_jax.tasks.validation import encode_labels

_OURS = (b"class_names", b"provenance")  # in the metadata of Parquet files
_BLOCK = 1 << 24  # bytes of features written or checked together


class Contents(NamedTuple):
    """What is written.

    Attributes:
      features: `(n, d)`; shape, dtype and slices of rows are all that is used of it.
      arrays: labels, groups, labelled: those that there are, `(n,)` each, none of them
        objects.
      class_names: whole numbers or text, or None.
      provenance: JSON text.
    """

    features: Any
    arrays: dict[str, np.ndarray]
    class_names: list | None
    provenance: str


# -- reading ---------------------------------------------------------------------------


def read_npy(path: Path, argument: str) -> np.ndarray:
    with reading(argument, path, "a NumPy file"):
        with path.open("rb") as stream:
            found = npy_header(stream, path.stat().st_size)
        return check_characters(_mapped(path, found))


def _mapped(path: Path, found: NpyHeader) -> np.ndarray:
    """The array of an .npy, mapped into memory where it has items."""
    if not found.size:
        return np.empty(found.shape, found.dtype)
    return np.memmap(
        path, found.dtype, "r", found.begin, found.shape, order=found.order
    )


def read_npy_and_neighbour(path: Path, argument: str) -> dict[str, Any]:
    features = read_npy(path, argument)
    beside = neighbour(path)
    if not beside.is_file():
        return {"features": features}
    with reading(argument, beside, "a NumPy file"):
        arrays = read_arrays(beside)
        belongs = int(arrays.pop("checksum")) == _checksum(features)
    if not belongs:
        raise ValueError(
            f"{argument}: {beside.name!r} belongs to other features than "
            f"{str(path)!r}; save them again, remove it, or name a file of labels: "
            "FEATURES.npy,LABELS.npy"
        )
    return {"features": features, **arrays}


def read_npz(path: Path, argument: str) -> dict[str, Any]:
    with reading(argument, path, "a NumPy file"):
        mapped = _mapped_member(path)
        if mapped is None:
            return read_arrays(path)
        return {**read_arrays(path, without=("features",)), "features": mapped}


def _mapped_member(path: Path, name: str = "features.npy") -> np.ndarray | None:
    """A member of an .npz mapped into memory, its checksum verified; None where it is
    absent, compressed or not aligned.
    """
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as stored, path.open("rb") as stream:
        if (
            name not in stored.namelist()
            or (info := stored.getinfo(name)).compress_type != zipfile.ZIP_STORED
        ):
            return None
        stream.seek(info.header_offset)
        local = stream.read(30)
        begin = info.header_offset + 30 + sum(struct.unpack("<HH", local[26:30]))
        stream.seek(begin)
        found = npy_header(stream, info.file_size)
        if not found.size or found.begin % found.dtype.itemsize:
            return None
        stream.seek(begin)
        check, left = 0, info.file_size
        while left:
            block = stream.read(min(left, _BLOCK))
            if not block:
                raise EOFError(f"its member {name!r} ends too early")
            check, left = zlib.crc32(block, check), left - len(block)
        if check != info.CRC:
            raise zipfile.BadZipFile(f"Bad CRC-32 for file {name!r}")
    return _mapped(path, found)


def read_safetensors(path: Path, argument: str) -> dict[str, Any]:
    require_package("safetensors", argument, f"{str(path)!r} needs")
    import ml_dtypes
    from safetensors import safe_open

    with (
        reading(argument, path, "a safetensors file"),
        safe_open(path, framework="numpy") as stored,
    ):
        names, said = set(stored.keys()), stored.metadata() or {}
        found = {name: stored.get_tensor(name) for name in sorted(names - {"features"})}
    if "features" in names:
        # The library has checked the header; it copies what it hands out, so features
        # are mapped here.
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            entry = read_json(stream.read(length))["features"]
        names_of = {"F": "float", "I": "int", "U": "uint"}
        kind, bits = entry["dtype"][0], entry["dtype"][1:]
        dtype = (
            ml_dtypes.bfloat16
            if entry["dtype"] == "BF16"
            else names_of.get(kind, "") + bits
        )
        try:
            dtype = np.dtype(dtype)
        except TypeError:
            raise ValueError(
                f"{argument}: {str(path)!r} holds features of dtype {entry['dtype']}; "
                "save them as F32"
            ) from None
        offset = 8 + length + entry["data_offsets"][0]
        shape = tuple(entry["shape"])
        found["features"] = (
            np.memmap(path, dtype, "r", offset, shape)
            if all(shape)
            else np.zeros(shape, dtype)
        )
    with reading(argument, path, "a safetensors file with metadata in JSON"):
        if "class_names" in said:
            found["class_names"] = read_json(said["class_names"])
    if "provenance" in said:
        found["provenance"] = said["provenance"]
    return found


def read_labels(
    path: Path,
    argument: str,
    label_column: str | None,
    group_column: str | None,
    texts: TextFormat,
) -> dict[str, Any]:
    """Read columns of labels and groups from a table, and class names where the table
    has them.

    Args:
      path: of a table.
      argument: what messages call it.
      label_column: its name; "labels" or "label", or the only column, when None.
      group_column: its name, or None.
      texts: how they are stored.

    Raises:
      ValueError: names the file, what was found and what to do.
    """
    table = open_table([path], path, argument, texts)
    names = table.names
    usual = ("labels", "label", *(names if len(names) == 1 else ()))
    name = label_column or next((name for name in usual if name in names), None)
    if name not in names:
        raise ValueError(
            f"label_column: {str(path)!r} has no column {name or 'label'!r}; it has "
            f"{', '.join(map(repr, names))}{table.hint}; name one (--label-column)"
        )
    return beside_features(table, name, group_column)


def beside_features(
    table: Table, label: str | None, group: str | None
) -> dict[str, Any]:
    """Labels, class names and groups of a table."""
    found: dict[str, Any] = {}
    if label is not None:
        table.check_column(label, "label_column")
        labels = labels_of(table, label)
        found["labels"] = np.array(labels, object if None in labels else None)
        if (names := class_label(table.schema.metadata, label)) is not None:
            found["class_names"] = names
    if group is not None:
        table.check_column(group, "group_column")
        values = table.whole(group)
        found["groups"] = encoded_groups(values, group, table.where, table.place)
    return found


def _with_nulls(values: Any) -> np.ndarray:
    """A column of labels; objects with None where it has no value."""
    if values.null_count or str(values.type).startswith("dictionary"):
        items = np.empty(len(values), object)
        items[:] = values.to_pylist()
        return items
    return values.to_numpy()


def read_parquet(
    files: list[Path],
    where: Path,
    argument: str,
    column: str | None,
    label_column: str | None,
    group_column: str | None,
) -> dict[str, Any]:
    """Read features and what belongs to them from files of one schema.

    Args:
      files: in their order.
      where: the file or folder, for messages.
      argument: what messages call it.
      column, label_column, group_column: as for `load_features`.
    """
    require_package("pyarrow", argument, f"{str(where)!r} needs")
    if not files:
        raise ValueError(
            f"{argument}: folder {str(where)!r} holds no .parquet file and no numbered "
            ".npy files"
        )
    with reading(argument, where, "Parquet, or its files differ"):
        stored = _shards(files, argument)
        schema = stored.schema
        names = [str(name) for name in schema.names]
        for option, name in (
            ("label_column", label_column),
            ("group_column", group_column),
        ):
            if name is not None and name not in names:
                raise ValueError(
                    f"{option}: {str(where)!r} has no column {name!r}; it has "
                    f"{', '.join(map(repr, names))}"
                )
        lists = [f.name for f in schema if _numbers_in_lists(f.type)]
        series = _numbered_columns(schema)
        column = column or _default_column(lists, series)
        if column not in lists and column not in series:
            kinds = ", ".join(f"{f.name} ({f.type})" for f in schema)
            raise ValueError(
                f"{argument}: {str(where)!r} has no column {column!r} of lists of "
                f"numbers; it holds {kinds}; name one (--column)"
            )
        numbered = () if column in lists else series[column]
        features_too = {*lists, *itertools.chain(*series.values())}
        others = [name for name in names if name not in {*features_too, group_column}]
        label = label_column or default_label(
            others, ("labels", "label"), column, f"{str(where)!r}"
        )
        rest = {name: name for name in ("groups", "labelled") if name in names} | (
            {"labels": label} if label else {}
        )
        rest |= {} if group_column is None else {"groups": group_column}
        features = (
            _side_by_side(stored, numbered, argument, where)
            if numbered
            else _list_column(stored, column, argument, where)
        )
        found: dict[str, Any] = {"features": features}
        for name, of in rest.items():
            values = stored.column(of)
            _check_rows(len(values), len(features), argument, where)
            found[name] = (
                _with_nulls(values)
                if name == "labels"
                else _plain_column(values, of, argument, where)
            )
    with reading(argument, where, "a Parquet file with metadata in JSON"):
        said = {
            key.decode(): value.decode()
            for key, value in (schema.metadata or {}).items()
            if key in _OURS
        }
        names = (
            read_json(said["class_names"])
            if "class_names" in said
            else class_label(schema.metadata, label or "")
        )
    if names is not None:
        found["class_names"] = names
    if "provenance" in said:
        found["provenance"] = said["provenance"]
    return found


class _Shards(NamedTuple):
    """Parquet files of one schema; one of them is open at a time.

    Attributes:
      files: in their order.
      schema: of the first.
      rows: of all together.
    """

    files: list[Path]
    schema: Any
    rows: int

    def batches(self, columns: Sequence[str]) -> Iterator[Any]:
        """Batches of rows of some columns, checked."""
        for file in self.files:
            with parquet_file(file) as stored:
                for batch in stored.iter_batches(8192, columns=list(columns)):
                    batch.validate(full=True)
                    yield batch

    def column(self, name: str) -> Any:
        """A column of all files, checked."""
        import pyarrow as pa

        parts = []
        for file in self.files:
            with parquet_file(file) as stored:
                parts.append(stored.read([name]).column(0))
        kind = parts[0].type
        values = pa.chunked_array([c for part in parts for c in part.chunks], type=kind)
        values.validate(full=True)
        return values

    def check_memory(self, width: int, itemsize: int) -> None:
        """Refuse features that need far more memory than the files have bytes."""
        stored = sum(file.stat().st_size for file in self.files)
        check_expansion(self.rows * width * itemsize, stored)


def _shards(files: list[Path], argument: str) -> _Shards:
    """Look at every file and compare their schemas.

    Raises:
      ValueError: names two files and the column in which they differ.
    """
    schema, rows = None, 0
    for file in files:
        with (
            reading(argument, file, "a Parquet file", *files[:1]),
            parquet_file(file) as stored,
        ):
            theirs, count = stored.schema_arrow, stored.metadata.num_rows
            if schema is None:
                schema = theirs
            same_columns([schema, theirs], [files[0], file], argument)
        rows += count
    return _Shards(files, schema, rows)


def _numbers_in_lists(kind: Any) -> bool:
    import pyarrow as pa

    listed = (
        pa.types.is_fixed_size_list(kind)
        or pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
    )
    return listed and (
        pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)
    )


def _numbered_columns(schema: Any) -> dict[str, tuple[str, ...]]:
    """Families of columns of numbers `f0`, `f1`, ... or `f1`, `f2`, ... by their common
    beginning; at least two in each.
    """
    import pyarrow as pa

    families: dict[str, dict[int, str]] = {}
    for field in schema:
        start = field.name.rstrip("0123456789")
        if start == field.name or not (
            pa.types.is_floating(field.type) or pa.types.is_integer(field.type)
        ):
            continue
        families.setdefault(start, {})[int(field.name[len(start) :])] = field.name
    return {
        start: tuple(found[k] for k in sorted(found))
        for start, found in families.items()
        if len(found) > 1
        and sorted(found) == list(range(min(found), min(found) + len(found)))
        and min(found) in (0, 1)
    }


def _default_column(lists: list[str], series: dict[str, tuple[str, ...]]) -> str:
    """The column of features where none was named."""
    if "features" in lists or len(lists) > 1:
        return "features"
    if lists:
        return lists[0]
    return next(iter(series)) if len(series) == 1 else "features"


def _side_by_side(
    stored: _Shards, columns: tuple[str, ...], argument: str, where: Path
) -> np.ndarray:
    """Columns of numbers as `(n, d)`, one batch of rows at a time."""
    rows = stored.rows
    out, at = np.empty((0, 0), np.float32), 0
    for batch in stored.batches(columns):
        by_name = [batch.column(batch.schema.get_field_index(c)) for c in columns]
        for name, values in zip(columns, by_name, strict=True):
            if values.null_count:
                empty = values.is_null().to_numpy(zero_copy_only=False)
                raise ValueError(
                    f"{argument}: {str(where)!r} has no value in column {name!r}, row "
                    f"{at + int(np.argmax(empty))}; fill or remove such rows"
                )
        block = np.stack([v.to_numpy(zero_copy_only=False) for v in by_name], axis=1)
        if at == 0:
            stored.check_memory(len(columns), block.dtype.itemsize)
            out = np.empty((rows, len(columns)), block.dtype)
        _check_rows(at + len(block), rows, argument, where, last=False)
        out[at : at + len(block)] = block
        at += len(block)
    _check_rows(at, rows, argument, where)
    return out


def _list_column(
    stored: _Shards, column: str, argument: str, where: Path
) -> np.ndarray:
    """A column of lists as `(n, d)`, one batch of rows at a time."""
    rows = stored.rows
    out, at = np.empty((0, 0), np.float32), 0
    for batch in stored.batches([column]):
        values = batch.column(0)
        if values.null_count:
            row = at + int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
            raise ValueError(
                f"{argument}: {str(where)!r} has no features in row {row}; remove such "
                "rows"
            )
        inner = values.flatten()
        if inner.null_count:
            rows_read = f"rows {at} to {at + len(values) - 1}"
            raise ValueError(
                f"{argument}: {str(where)!r} has missing numbers in {rows_read}; fill "
                "or remove them"
            )
        flat = inner.to_numpy(zero_copy_only=False)
        fixed = getattr(values.type, "list_size", None)
        lengths = (
            np.diff(values.offsets.to_numpy())
            if fixed is None
            else np.full(len(values), fixed)
        )
        if at == 0:
            width = int(lengths[0]) if len(lengths) else 0
            stored.check_memory(width, flat.dtype.itemsize)
            out = np.empty((rows, width), flat.dtype)
        _check_rows(at + len(values), rows, argument, where, last=False)
        other = np.flatnonzero(lengths != out.shape[1])
        if other.size:
            raise ValueError(
                f"{argument}: {str(where)!r} has {lengths[other[0]]} features in row "
                f"{at + other[0]}, but {out.shape[1]} "
                "in row 0; all rows need one length"
            )
        out[at : at + len(values)] = flat.reshape(len(values), -1)
        at += len(values)
    _check_rows(at, rows, argument, where)
    return out


def _check_rows(
    read: int, declared: int, argument: str, where: Path, *, last: bool = True
) -> None:
    """Compare how many rows were read with how many the file says it has.

    Raises:
      ValueError: there are more, or at the end fewer.
    """
    if read > declared or (last and read < declared):
        raise ValueError(
            f"{argument}: {str(where)!r} is damaged: it says that it has {declared} "
            f"rows, but {read} were read"
        )


def _plain_column(values: Any, name: str, argument: str, where: Path) -> np.ndarray:
    if values.null_count:
        row = int(np.argmax(values.is_null().to_numpy()))
        raise ValueError(
            f"{argument}: {str(where)!r} has no value in column {name!r}, row {row}; "
            "fill or remove such rows"
        )
    return values.to_numpy()


# -- writing ---------------------------------------------------------------------------


def _blocks(values: Any) -> Iterator[np.ndarray]:
    rows = max(1, _BLOCK // max(1, values.shape[1] * np.dtype(values.dtype).itemsize))
    for start in range(0, values.shape[0], rows):
        block = np.ascontiguousarray(values[start : start + rows])
        yield block.astype(block.dtype.newbyteorder("<"), copy=False)


def _checksum(values: Any) -> int:
    check = 0
    for block in _blocks(values):
        check = zlib.crc32(block.tobytes(), check)
    return check


def neighbour(path: Path) -> Path:
    """The file that holds what belongs to the features of an .npy."""
    return path.with_name(f"{path.stem}.meta.npz")


def _said(contents: Contents) -> dict[str, str]:
    names = (
        {}
        if contents.class_names is None
        else {"class_names": json.dumps(contents.class_names)}
    )
    return {**names, "provenance": contents.provenance}


def _npz_members(contents: Contents) -> dict[str, np.ndarray]:
    names = (
        {}
        if contents.class_names is None
        else {"class_names": np.array(contents.class_names)}
    )
    return {**contents.arrays, **names, "provenance": np.array(contents.provenance)}


def _write_header(stream: IO[bytes], values: Any, at: int) -> None:
    """An .npy header (format 1.0) whose data begin at a multiple of 64 bytes of the
    file, `at` bytes before which it begins.
    """
    fields = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(values.dtype).newbyteorder("<")),
        "fortran_order": False,
        "shape": values.shape,
    }
    text = repr(fields).encode("latin1")
    padding = -(at + 10 + len(text) + 1) % 64
    body = text + b" " * padding + b"\n"
    stream.write(np.lib.format.magic(1, 0) + struct.pack("<H", len(body)) + body)


def write_npz(path: Path, contents: Contents) -> None:
    values = contents.features

    # `ZipInfo` with its fixed date, so that the same features give the same bytes.
    def write(stream: IO[bytes]) -> None:
        with zipfile.ZipFile(
            stream, "w", zipfile.ZIP_STORED, allowZip64=True
        ) as stored:
            with stored.open(
                zipfile.ZipInfo("features.npy"), "w", force_zip64=True
            ) as member:
                _write_header(member, values, stream.tell())
                for block in _blocks(values):
                    member.write(block.tobytes())
            for name, array in _npz_members(contents).items():
                with stored.open(
                    zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True
                ) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)

    write_atomically(path, write)


def write_npy(path: Path, contents: Contents) -> None:
    values = contents.features

    def write(stream: IO[bytes]) -> None:
        _write_header(stream, values, 0)
        for block in _blocks(values):
            stream.write(block.tobytes())

    # In between an old neighbour belongs to other features, which its checksum tells.
    write_atomically(path, write)
    members: dict[str, Any] = {
        **_npz_members(contents),
        "checksum": np.array(_checksum(values)),
    }
    write_atomically(neighbour(path), lambda stream: np.savez(stream, **members))


def write_safetensors(path: Path, contents: Contents) -> None:
    values, arrays = contents.features, contents.arrays
    said = _said(contents)
    if "labels" in arrays and arrays["labels"].dtype.kind not in "biu":
        labels = arrays["labels"]  # text, which tensors do not hold
        given = (
            None
            if contents.class_names is None
            else [str(name) for name in contents.class_names]
        )
        everyone = np.ones(len(labels), bool)
        codes, _, names = encode_labels(labels, everyone, given, path.stem, len(labels))
        if given is None:
            said["class_names"] = json.dumps(names)
        arrays = {**arrays, "labels": codes.astype(np.int64)}
    special = {"bool": "BOOL", "bfloat16": "BF16"}
    tensors = {"features": values, **arrays}
    header: dict[str, Any] = {"__metadata__": said}
    at = 0
    for name, array in tensors.items():
        dtype = np.dtype(array.dtype)
        size = int(np.prod(array.shape)) * dtype.itemsize
        kind = special.get(dtype.name) or f"{dtype.kind.upper()}{8 * dtype.itemsize}"
        header[name] = {
            "dtype": kind,
            "shape": list(array.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned

    def write(stream: IO[bytes]) -> None:
        # The library's writer wants all bytes in memory at once.
        stream.write(len(text).to_bytes(8, "little") + text)
        for block in _blocks(values):
            stream.write(block.tobytes())
        for array in arrays.values():
            stream.write(np.ascontiguousarray(array).tobytes())

    write_atomically(path, write)


def write_parquet(path: Path, contents: Contents) -> None:
    values, arrays = contents.features, contents.arrays
    require_package("pyarrow", "path", f"{str(path)!r} needs")
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [
        ("features", pa.list_(pa.from_numpy_dtype(values.dtype), values.shape[1]))
    ]
    fields += [(name, pa.array(array[:0]).type) for name, array in arrays.items()]
    schema = pa.schema(fields, metadata=_said(contents))

    def write(stream: IO[bytes]) -> None:
        # Numbers of an encoder hardly repeat: without a dictionary, writing is quicker
        # and no larger.
        with pq.ParquetWriter(
            stream,
            schema,
            compression="zstd",
            use_dictionary=False,
            write_page_checksum=True,
        ) as writer:
            at = 0
            for block in _blocks(values):
                rows = slice(at, at + len(block))
                lists = pa.FixedSizeListArray.from_arrays(
                    pa.array(block.reshape(-1)), values.shape[1]
                )
                columns = [lists, *(pa.array(array[rows]) for array in arrays.values())]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
                at += len(block)

    write_atomically(path, write)
