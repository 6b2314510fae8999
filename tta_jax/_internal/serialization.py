"""One file for a result: a zip of arrays and a JSON description. No pickle; floats and
arrays come back bit for bit.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import struct
import sys
import zipfile
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from types import UnionType
from typing import (
    IO,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np

from tta_jax._internal.files import reading, write_atomically
from tta_jax._internal.limits import check_expansion
from tta_jax._internal.text import read_json

FORMAT = 4
_BLOCK = 1 << 24  # bytes read together
# Readers raise anything on damaged bytes: Arrow, safetensors, pickle and tarfile have
# exceptions of their own, and a damaged shape asks for any amount of memory.
DAMAGE = (Exception,)
_KINDS: dict[str, type] = {}
T = TypeVar("T")


def storable(cls):
    """Class decorator: lets dataclasses of this class be stored and loaded by name."""
    assert _KINDS.get(cls.__name__, cls) is cls, f"two kinds are named {cls.__name__}"
    _KINDS[cls.__name__] = cls
    return cls


def _pack(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "__array__"):  # NumPy's and JAX's
        name = f"a{len(arrays)}"
        arrays[name] = np.asarray(value)
        return {"array": name}
    if isinstance(value, tuple):
        return {"tuple": [_pack(v, arrays) for v in value]}
    if isinstance(value, list):
        return [_pack(v, arrays) for v in value]
    if isinstance(value, dict):
        return {
            "dict": [[_pack(k, arrays), _pack(v, arrays)] for k, v in value.items()]
        }
    if dataclasses.is_dataclass(value) and type(value).__name__ in _KINDS:
        fields = {
            f.name: _pack(getattr(value, f.name), arrays)
            for f in dataclasses.fields(value)
        }
        return {"kind": type(value).__name__, "fields": fields}
    # A class name of an exotic type survives as its description.
    return repr(value)


def _unpack(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_unpack(v, arrays) for v in value]
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[value["array"]]
    if "tuple" in value:
        return tuple(_unpack(v, arrays) for v in value["tuple"])
    if "dict" in value:
        return {_unpack(k, arrays): _unpack(v, arrays) for k, v in value["dict"]}
    fields = {k: _unpack(v, arrays) for k, v in value["fields"].items()}
    cls = _KINDS[value["kind"]]
    for name, hint in _hints(cls).items():
        if name in fields and not _fits(fields[name], hint):
            found = type(fields[name]).__name__
            raise TypeError(f"{cls.__name__}.{name} is of another type ({found})")
    made = cls(**fields)
    if hasattr(made, "check_stored"):
        made.check_stored()
    return made


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    # A file holds NumPy's arrays for JAX's, and floats where a pair is traced.
    stored = {"ArrayLike": np.ndarray | float, "Array": np.ndarray, "Scalar": float}
    hints = get_type_hints(cls, localns=stored)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from a file is what the annotation of its field says; arrays hold
    real numbers.
    """
    kind, of = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, one) for one in of)
    if kind is tuple and of[-1] is not Ellipsis:
        same = isinstance(value, tuple) and len(value) == len(of)
        return same and all(map(_fits, value, of))
    if kind in (tuple, list, Sequence):
        return isinstance(value, kind) and all(_fits(item, of[0]) for item in value)
    if kind in (dict, Mapping):
        return isinstance(value, dict) and all(
            _fits(k, of[0]) and _fits(v, of[1]) for k, v in value.items()
        )
    if hint is np.ndarray:
        return isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if hint in (float, int):
        number = Real if hint is float else int
        return isinstance(value, number) and not isinstance(value, bool)
    return hint is Any or not isinstance(hint, type) or isinstance(value, hint)


class NpyHeader(NamedTuple):
    """What the header of an .npy says.

    Attributes:
      shape, dtype: of the array.
      columns_first: whether it lies in Fortran's order.
      begin: where its data begin in the stream.
      size: bytes of the data.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    columns_first: bool
    begin: int
    size: int

    @property
    def order(self) -> Literal["C", "F"]:
        return "F" if self.columns_first else "C"


def npy_header(stream: IO[bytes], length: int) -> NpyHeader:
    """The header of an .npy that begins at the stream's position.

    Args:
      stream: moves to the first byte of the data.
      length: bytes of the whole .npy.

    Raises:
      ValueError: it holds objects, or more or fewer bytes than its header says; and
        others of `DAMAGE`.
    """
    start = stream.tell()
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"its .npy format {version} is unknown")
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, columns_first, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds objects; save numbers or strings, not objects")
    begin = stream.tell()
    size, there = math.prod(shape) * dtype.itemsize, length - (begin - start)
    # Items without bytes would be any number of items.
    if min(shape, default=0) < 0 or (math.prod(shape) and not dtype.itemsize):
        raise ValueError(f"its header says shape {shape} of {dtype}")
    if size != there:
        raise ValueError(f"its header says {size} bytes of data, but {there} are there")
    return NpyHeader(shape, dtype, columns_first, begin, size)


def read_arrays(path: Path, without: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name, but those of `without`; one of `DAMAGE` is raised
    for anything else, a single array too.

    Every member is read to its end, so that its checksum is compared.
    """
    with path.open("rb") as stream:
        if stream.read(6) == np.lib.format.MAGIC_PREFIX:
            raise TypeError("it holds one array without a name, as an .npy does")
        with zipfile.ZipFile(stream) as stored:
            members = stored.infolist()
            _check_number(stored, stream, len(members))
            check_expansion(
                sum(info.file_size for info in members), path.stat().st_size
            )
            names = [info.filename.removesuffix(".npy") for info in members]
            if len(set(names)) < len(names):
                raise ValueError("it has two members of one name")
            return {
                name: _read_member(stored, info)
                for name, info in zip(names, members, strict=True)
                if name not in without
            }


# What ends an archive: a signature, disks, entries, size and place of the directory,
# and the length of a comment.
_END = struct.Struct("<4s4H2LH")
_MANY = 0xFFFF  # entries that this record cannot count


def _check_number(stored: zipfile.ZipFile, stream: IO[bytes], found: int) -> None:
    """Compare the members that were found with their number at the archive's end: a
    changed length in the directory hides those that follow.

    Raises:
      EOFError: they are not as many.
    """
    stream.seek(-_END.size - len(stored.comment), os.SEEK_END)
    said = _END.unpack(stream.read(_END.size))[4]
    if said not in (found, _MANY):
        raise EOFError(f"its directory lists {found} members, {said} should be there")


def _read_member(stored: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    if not info.filename.endswith(".npy"):
        raise TypeError(f"its member {info.filename!r} is not an array")
    with stored.open(info) as member:
        try:
            header = npy_header(member, info.file_size)
        except ValueError as error:
            raise ValueError(f"in its member {info.filename!r}: {error}") from None
        data, at = bytearray(header.size), 0
        with memoryview(data) as view:
            while block := member.read(min(_BLOCK, header.size - at)):
                view[at : at + len(block)] = block
                at += len(block)
        # The checksum is compared when the end was read.
        if at < header.size or member.read(1):
            raise EOFError(f"its member {info.filename!r} has another size")
    return check_characters(
        np.ndarray(header.shape, header.dtype, data, order=header.order)
    )


def check_characters(array: np.ndarray) -> np.ndarray:
    """The array itself; texts hold only characters that exist, since Python cannot make
    a text of others.

    Raises:
      ValueError: one does not exist.
    """
    if array.dtype.kind == "U" and array.size:
        numbers = np.dtype(np.uint32).newbyteorder(array.dtype.byteorder)
        if np.ascontiguousarray(array).reshape(-1).view(numbers).max() > sys.maxunicode:
            raise ValueError("it holds characters that do not exist")
    return array


def save(path: str | os.PathLike, value: Any) -> None:
    """Write a storable dataclass to `path`, atomically."""
    arrays: dict[str, np.ndarray] = {}
    header = {"format": FORMAT, "content": _pack(value, arrays)}
    blob = np.frombuffer(json.dumps(header).encode(), np.uint8)
    contents: dict[str, Any] = {"header": blob, **arrays}
    write_atomically(path, lambda stream: np.savez(stream, **contents))


def load_as(
    path: str | os.PathLike, cls: type[T] | tuple[type[T], ...], said: str
) -> T:
    """Read what `save` wrote of one kind.

    Args:
      path: of the file.
      cls: the kind, or several.
      said: what to call it in a message, e.g. "an evaluation".

    Raises:
      ValueError: as `load`, or the file holds another kind.
    """
    found = load(path)
    if not isinstance(found, cls):
        raise ValueError(
            f"path: {str(path)!r} holds {type(found).__name__}, not {said}"
        )
    return found


def load(path: str | os.PathLike) -> Any:
    """Read what `save` wrote.

    Raises:
      ValueError: not such a file, damaged, or of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"path: there is no file {str(path)!r}")
    with reading("path", path, "a saved analysis"):
        arrays = read_arrays(path)
        if "header" not in arrays:
            raise ValueError("it has no array 'header'")
        header = read_json(arrays["header"].tobytes())
        version = header["format"]
        if not isinstance(version, int):
            raise TypeError("its format is not a number")
        value = _unpack(header["content"], arrays) if version == FORMAT else None
    if version != FORMAT:
        advice = "upgrade" if version > FORMAT else "run it again and save it"
        raise ValueError(
            f"path: {str(path)!r} has format {version}, this version of tta_jax reads "
            f"format {FORMAT}; {advice}"
        )
    return value
