"""Weights of published networks as NumPy arrays, without the library that wrote them.

A pickle is a program. Weight files need few of its instructions, so these are
interpreted here, and nothing that a file names
is ever imported or called: a name stands for one of our own constructors, or the file
is refused.
"""

from __future__ import annotations

import io
import math
import os
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

from tta_jax._internal.serialization import DAMAGE
from tta_jax._internal.text import one_line

_TORCH_MAGIC, _TORCH_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def read_legacy_torch(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Tensors by name from a state dictionary in the format that `torch.save` had
    before version 1.6.

    The file holds five pickles (magic number, protocol, facts of the machine, tensors
    that refer to storages, order of the storages) and then every storage: a count of
    items in 8 bytes, and the items. Tensors are read-only views of the file's bytes.

    Raises:
      ValueError: one line that names `weights` and the file, for anything else.
    """

    def parse(data: bytes) -> dict[str, np.ndarray]:
        if data.startswith(b"PK\x03\x04"):
            raise ValueError(
                "it is torch's zip format; write it with torch.save(..., "
                "_use_new_zipfile_serialization=False)"
            )
        stream = io.BytesIO(data)
        if _unpickle(stream) != _TORCH_MAGIC or _unpickle(stream) != _TORCH_PROTOCOL:
            raise ValueError("it does not begin as a legacy torch file does")
        if _unpickle(stream).get("little_endian") is not True:
            raise ValueError("it was written on a big-endian machine")
        storages: dict[str, _Storage] = {}
        tensors = _unpickle(stream, storages)
        for key in _unpickle(stream):
            storages.pop(_text(key)).read(data, stream)
        if storages or stream.tell() != len(data):
            raise ValueError("its storages are not those of its tensors")
        return {name: _array(tensor) for name, tensor in tensors.items()}

    return _read(path, parse)


def read_array_pickle(path: str | os.PathLike) -> dict[str, list[np.ndarray]]:
    """Lists of arrays by name from a pickle (up to protocol 4) of a dictionary of lists
    of NumPy arrays.

    Raises:
      ValueError: one line that names `weights` and the file, for anything else.
    """

    def parse(data: bytes) -> dict[str, list[np.ndarray]]:
        stream = io.BytesIO(data)
        found = _unpickle(stream)
        if stream.tell() != len(data):
            raise ValueError("bytes follow the end of the pickle")
        return {name: [_array(a) for a in arrays] for name, arrays in found.items()}

    return _read(path, parse)


def read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Tensors by name from a safetensors file.

    Raises:
      ValueError: one line that names `weights` and the file.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load
    except ImportError:
        raise ValueError(
            f"weights: {os.fspath(path)!r} needs the library safetensors; install it "
            "with: pip install 'tta-jax[data]'"
        ) from None

    def parse(data: bytes) -> dict[str, np.ndarray]:
        try:
            return load(data)
        except SafetensorError as error:
            raise ValueError(one_line(error)) from None

    return _read(path, parse)


def taker(
    weights: dict[str, np.ndarray], path: str | os.PathLike
) -> Callable[..., np.ndarray]:
    """A function `take(name, *shape)` that returns one of the `weights` of a file as
    float32 if it is as expected.

    Raises:
      ValueError: from `take`; one line that names `weights`, the file, the array, what
        was found and what was expected.
    """
    where = f"weights: {os.fspath(path)!r}"

    def take(name: str, *shape: int) -> np.ndarray:
        if name not in weights:
            raise ValueError(
                f"{where} has no array {name!r}; it holds the weights of another "
                "network"
            )
        array = weights[name]
        if array.shape != shape or array.dtype.kind != "f":
            found = f"{array.dtype} of shape {array.shape}"
            raise ValueError(
                f"{where}: array {name!r} is {found}, expected floats of shape {shape}"
            )
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise ValueError(
                f"{where} is damaged: array {name!r} holds NaN or infinity"
            )
        return array

    return take


def _read(path: str | os.PathLike, parse: Callable[[bytes], Any]) -> Any:
    try:
        return parse(Path(path).read_bytes())
    except DAMAGE as error:
        raise ValueError(
            f"weights: cannot read {os.fspath(path)!r} as weights "
            f"({one_line(error)[:200]})"
        ) from None


# -- what a file may name --------------------------------------------------------------


class _Storage:
    """`count` items, which lie behind the pickles of a legacy torch file."""

    def __init__(self, dtype: np.dtype, count: int):
        self.dtype, self.count, self.items = dtype, count, np.empty(0, dtype)

    def read(self, data: bytes, stream: io.BytesIO) -> None:
        if int.from_bytes(stream.read(8), "little") != self.count:
            raise ValueError("a storage has another size than its tensor says")
        self.items = np.frombuffer(data, self.dtype, self.count, stream.tell())
        stream.seek(self.items.nbytes, io.SEEK_CUR)


class _Tensor:
    """A view of a storage; shape, strides and offset count items."""

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any):
        self.storage, self.offset, self.shape, self.strides = (
            storage,
            offset,
            shape,
            strides,
        )

    def array(self) -> np.ndarray:
        items, shape, strides = (
            self.storage.items,
            _counts(self.shape),
            _counts(self.strides),
        )
        (offset,) = _counts((self.offset,))
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        # Strides of 0 would make an array of any size out of one item.
        if math.prod(shape) > len(items) or last >= len(items):
            raise ValueError("a tensor is larger than its storage")
        return np.lib.stride_tricks.as_strided(
            items[offset:],
            shape,
            [s * items.itemsize for s in strides],
            writeable=False,
        )


class _Dtype:
    def __init__(self, code: Any):
        if not re.fullmatch("f[248]|[iu][1248]", _text(code)):
            raise ValueError("an array holds something else than numbers")
        self.dtype = np.dtype(code)

    def build(self, state: Any) -> None:
        if _text(state[1]) == ">":
            self.dtype = self.dtype.newbyteorder(">")


class _Array:
    def build(self, state: Any) -> None:
        _, shape, dtype, columns_first, data = state
        self.items = np.frombuffer(data, dtype.dtype).reshape(
            _counts(shape), order="F" if columns_first else "C"
        )

    def array(self) -> np.ndarray:
        return self.items


class _Mapping(dict):
    def build(self, state: Any) -> None:
        """Torch keeps versions of its modules here; they are not needed."""


def _counts(values: Any) -> tuple[int, ...]:
    if not (
        isinstance(values, tuple) and all(isinstance(v, int) and v >= 0 for v in values)
    ):
        raise ValueError("a shape, a stride or an offset is not a count")
    return values


def _text(value: Any) -> str:
    # Before it is hashed, too: a tuple of shared tuples takes forever.
    if not isinstance(value, str):
        raise ValueError("a name is not text")
    return value


def _array(value: Any) -> np.ndarray:
    if not isinstance(value, (_Tensor, _Array)):
        raise ValueError("it holds something else than arrays")
    return value.array()


def _reconstruct(cls, shape, typecode):
    return _Array()


# Functions may be called with what the file says; the rest are only passed on.
_NAMES = {
    ("collections", "OrderedDict"): lambda: _Mapping(),
    (
        "torch._utils",
        "_rebuild_tensor_v2",
    ): lambda storage, offset, shape, strides, *_: _Tensor(
        storage, offset, shape, strides
    ),
    ("torch", "FloatStorage"): np.dtype("<f4"),
    ("torch", "LongStorage"): np.dtype("<i8"),
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): lambda code, align, copy: _Dtype(code),
}


# -- the interpreter -------------------------------------------------------------------

_ARGUMENT = {
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINBYTES",
    "SHORT_BINBYTES",
}
_CONSTANT = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
_TUPLE = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_ADMITTED = {
    *_ARGUMENT,
    *_CONSTANT,
    *_EMPTY,
    *_TUPLE,
    "PROTO",
    "FRAME",
    "MARK",
    "TUPLE",
    "BINPUT",
    "LONG_BINPUT",
    "MEMOIZE",
    "BINGET",
    "LONG_BINGET",
    "APPEND",
    "APPENDS",
    "SETITEM",
    "SETITEMS",
    "GLOBAL",
    "STACK_GLOBAL",
    "REDUCE",
    "BUILD",
    "BINPERSID",
    "STOP",
}
_OPCODES = {
    opcode.code.encode("latin-1"): opcode
    for opcode in pickletools.opcodes
    if opcode.name in _ADMITTED
}


def _unpickle(stream: io.BytesIO, storages: dict[str, _Storage] | None = None) -> Any:
    """The value of the pickle at the stream's position, which moves behind it. Storages
    it refers to are added to `storages`.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def cut(start: int) -> list[Any]:
        items = stack[start:]
        del stack[start:]
        return items

    def find(module: Any, name: Any) -> Any:
        try:
            return _NAMES[_text(module), _text(name)]
        except KeyError:
            raise ValueError(
                f"it names {f'{module}.{name}'[:100]!a}, which no array needs"
            ) from None

    while True:
        code = stream.read(1)
        if code not in _OPCODES:
            raise ValueError(f"it holds {code!r} where arrays are described")
        opcode = _OPCODES[code]
        name, argument = opcode.name, None
        if opcode.arg is not None and name != "GLOBAL":
            argument = opcode.arg.reader(stream)
        if name in _ARGUMENT:
            stack.append(argument)
        elif name in _CONSTANT:
            stack.append(_CONSTANT[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(cut(marks.pop())))
        elif name in _TUPLE:
            stack.append(tuple(cut(-_TUPLE[name])))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("APPEND", "APPENDS"):
            list.extend(
                *_onto(list, stack, cut(-1 if name == "APPEND" else marks.pop()))
            )
        elif name in ("SETITEM", "SETITEMS"):
            items = cut(-2 if name == "SETITEM" else marks.pop())
            pairs = zip(map(_text, items[::2]), items[1::2], strict=True)
            dict.update(*_onto(dict, stack, pairs))
        elif name == "GLOBAL":
            stack.append(
                find(*(stream.readline().decode().rstrip("\n") for _ in range(2)))
            )
        elif name == "STACK_GLOBAL":
            stack.append(find(*cut(-2)))
        elif name == "REDUCE":
            function, arguments = cut(-2)
            if not isinstance(function, FunctionType):
                raise ValueError("it calls something that is no constructor of arrays")
            stack.append(function(*arguments))
        elif name == "BUILD":
            (state,) = cut(-1)
            if not isinstance(stack[-1], (_Dtype, _Array, _Mapping)):
                raise ValueError("it changes something that is no array")
            stack[-1].build(state)
        elif name == "BINPERSID":
            kind, dtype, key, _, count, view = cut(-1)[0]
            if (
                storages is None
                or kind != "storage"
                or view is not None
                or not isinstance(dtype, np.dtype)
            ):
                raise ValueError("it refers to something else than storages")
            stack.append(
                storages.setdefault(_text(key), _Storage(dtype, *_counts((count,))))
            )
        elif name == "STOP":
            (value,) = stack
            return value


def _onto(kind: type, stack: list[Any], more: Any) -> tuple[Any, Any]:
    if not isinstance(stack[-1], kind):
        raise ValueError("it adds items to something that takes none")
    return stack[-1], more
