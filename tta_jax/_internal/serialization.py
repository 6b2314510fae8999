"""One file for a result: a zip of arrays and a JSON description. No pickle; floats and
arrays come back bit for bit.
"""

from __future__ import annotations

import dataclasses
import json
import lzma
import os
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from tta_jax._internal.files import write_atomically
from tta_jax._internal.text import one_line

FORMAT = 4
# What the readers of zip, npy and JSON raise on damaged bytes (a damaged shape asks for
# any amount of memory), and ours on a
# header of another shape.
DAMAGE = (
    OSError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    SyntaxError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
)
_KINDS: dict[str, type] = {}


def storable(cls):
    """Class decorator: lets dataclasses of this class be stored and loaded by name."""
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
    return _KINDS[value["kind"]](
        **{k: _unpack(v, arrays) for k, v in value["fields"].items()}
    )


def read_arrays(path: Path, without: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name, but those of `without`; one of `DAMAGE` is raised
    for anything else, a single array too.
    """
    # Opened here: NumPy leaves the file open when its archive turns out to be damaged.
    with path.open("rb") as stream:
        stored = np.load(stream, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            raise TypeError("it holds one array without a name, as an .npy does")
        with stored:
            arrays = {
                name: stored[name] for name in stored.files if name not in without
            }
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise TypeError(f"its member {name!r} is not an array")
    return arrays


def save(path: str | os.PathLike, value: Any) -> None:
    """Write a storable dataclass to `path`, atomically."""
    arrays: dict[str, np.ndarray] = {}
    header = {"format": FORMAT, "content": _pack(value, arrays)}
    blob = np.frombuffer(json.dumps(header).encode(), np.uint8)
    contents: dict[str, Any] = {"header": blob, **arrays}
    write_atomically(path, lambda stream: np.savez(stream, **contents))


def load(path: str | os.PathLike) -> Any:
    """Read what `save` wrote.

    Raises:
      ValueError: not such a file, damaged, or of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"path: there is no file {str(path)!r}")
    try:
        arrays = read_arrays(path)
        header = json.loads(arrays["header"].tobytes())
        version = header["format"]
        if not isinstance(version, int):
            raise TypeError("its format is not a number")
        value = _unpack(header["content"], arrays) if version == FORMAT else None
    except DAMAGE as error:
        raise ValueError(
            f"path: {str(path)!r} is not a saved analysis or is damaged "
            f"({one_line(error)})"
        ) from None
    if version != FORMAT:
        advice = "upgrade" if version > FORMAT else "run it again and save it"
        raise ValueError(
            f"path: {str(path)!r} has format {version}, this version of tta_jax reads "
            f"format {FORMAT}; {advice}"
        )
    return value
