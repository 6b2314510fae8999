"""Weights of published networks as NumPy arrays, without the library that wrote them.

A pickle is a program. Before one is run, its instructions are checked without running
them (`_checked`): those that no array needs are refused, and so are keys that are not
text and indices that would take memory. `_Arrays` then runs it; every name that it
holds stands for a constructor of this module, and nothing else is imported or called.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
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
        stream, storages = io.BytesIO(data), {}
        if _unpickle(stream) != _TORCH_MAGIC or _unpickle(stream) != _TORCH_PROTOCOL:
            raise ValueError("it does not begin as a legacy torch file does")
        if _unpickle(stream).get("little_endian") is not True:
            raise ValueError("it was written on a big-endian machine")
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
        # One list, used many times, would make any number of arrays.
        if sum(map(len, found.values())) > len(data):
            raise ValueError("it holds more arrays than bytes")
        return {name: [_array(a) for a in arrays] for name, arrays in found.items()}

    return _read(path, parse)


def read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Tensors by name from a safetensors file.

    Raises:
      ValueError: one line that names `weights` and the file.
    """
    try:
        from safetensors import SafetensorError, deserialize
    except ImportError:
        raise ValueError(
            f"weights: {os.fspath(path)!r} needs the library safetensors; install it "
            "with: pip install 'tta-jax[data]'"
        ) from None

    def parse(data: bytes) -> dict[str, np.ndarray]:
        try:
            return {
                name: np.frombuffer(
                    found["data"], _stored_dtype(found["dtype"])
                ).reshape(found["shape"])
                for name, found in deserialize(data)
            }
        except SafetensorError as error:
            raise ValueError(one_line(error)) from None

    return _read(path, parse)


def _stored_dtype(name: str) -> np.dtype:
    """The dtype that safetensors calls "F32", "BF16", "I64", "BOOL" ...

    Raises:
      ValueError: for one that NumPy and JAX do not have.
    """
    parsed = re.fullmatch(r"(BF|F|I|U)([0-9]+)", name)
    kinds = {"BF": "bfloat", "F": "float", "I": "int", "U": "uint"}
    try:
        return np.dtype(f"{kinds[parsed[1]]}{parsed[2]}" if parsed else name.lower())
    except TypeError:
        raise ValueError(f"it holds values of type {name}") from None


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
    except (*DAMAGE, pickle.PickleError) as error:
        raise ValueError(
            f"weights: cannot read {os.fspath(path)!r} as weights "
            f"({one_line(error)[:200]})"
        ) from None


# -- what a pickle makes ---------------------------------------------------------------


class _Storage:
    """`count` items, which lie behind the pickles of a legacy torch file."""

    __slots__ = ("count", "dtype", "items")

    def __init__(self, dtype: np.dtype, count: int):
        self.dtype, self.count, self.items = dtype, count, np.empty(0, dtype)

    def read(self, data: bytes, stream: io.BytesIO) -> None:
        if int.from_bytes(stream.read(8), "little") != self.count:
            raise ValueError("a storage has another size than its tensor says")
        self.items = np.frombuffer(data, self.dtype, self.count, stream.tell())
        stream.seek(self.items.nbytes, io.SEEK_CUR)


class _Tensor:
    """A view of a storage; shape, strides and offset count items."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any):
        if not isinstance(storage, _Storage):
            raise ValueError("a tensor has no storage")
        self.storage, self.offset = storage, offset
        self.shape, self.strides = shape, strides

    def __setstate__(self, state: Any) -> None:
        raise ValueError("it changes a tensor")

    def array(self) -> np.ndarray:
        items = self.storage.items
        shape, strides = _counts(self.shape), _counts(self.strides)
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
    """The type of an array's items."""

    __slots__ = ("dtype",)

    def __init__(self, code: Any, *_: Any):
        if not re.fullmatch("f[248]|[iu][1248]", _text(code)):
            raise ValueError("an array holds something else than numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if _text(state[1]) == ">":
            self.dtype = self.dtype.newbyteorder(">")


class _Array:
    """An array that holds what its state says, and nothing before."""

    __slots__ = ("items",)

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, columns_first, data = state
        self.items = np.frombuffer(data, dtype.dtype).reshape(
            _counts(shape), order="F" if columns_first else "C"
        )

    def array(self) -> np.ndarray:
        return self.items


class _Mapping(dict):
    """A dictionary; torch keeps versions of its modules in its state."""

    __slots__ = ()

    def __init__(self):
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Ignore the versions."""


class _Constructor:
    """What a pickle gets for the name of a constructor.

    A class or a function would have attributes, which a pickle may set.
    """

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]):
        object.__setattr__(self, "_make", make)

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise ValueError("it changes something that is no array")


class _StorageType:
    """What a pickle gets for the name of a class of storages."""

    __slots__ = ("dtype",)

    def __init__(self, code: str):
        object.__setattr__(self, "dtype", np.dtype(code))

    def __setattr__(self, name: str, value: Any) -> None:
        raise ValueError("it changes something that is no array")


_RECONSTRUCT = _Constructor(_Array)
_NAMES = {
    ("collections", "OrderedDict"): _Constructor(_Mapping),
    ("torch._utils", "_rebuild_tensor_v2"): _Constructor(_Tensor),
    ("torch", "FloatStorage"): _StorageType("<f4"),
    ("torch", "LongStorage"): _StorageType("<i8"),
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): None,  # only passed on
    ("numpy", "dtype"): _Constructor(_Dtype),
}


def _counts(values: Any) -> tuple[int, ...]:
    if not (
        isinstance(values, tuple) and all(isinstance(v, int) and v >= 0 for v in values)
    ):
        raise ValueError("a shape, a stride or an offset is not a count")
    return values


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a name is not text")
    return value


def _array(value: Any) -> np.ndarray:
    if not isinstance(value, (_Tensor, _Array)):
        raise ValueError("it holds something else than arrays")
    return value.array()


# -- how it is run ---------------------------------------------------------------------


class _Arrays(pickle.Unpickler):
    """Run a checked pickle.

    Args:
      data: its bytes.
      storages: those it refers to are added here; None where there are none.
      size: most bytes that a storage may have.
    """

    def __init__(self, data: bytes, storages: dict[str, _Storage] | None, size: int):
        super().__init__(io.BytesIO(data))
        self._storages, self._size = storages, size

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[module, name]
        except KeyError:
            raise ValueError(
                f"it names {f'{module}.{name}'[:100]!a}, which no array needs"
            ) from None

    def persistent_load(self, reference: Any) -> _Storage:
        kind, of, key, _, count, view = reference
        if (
            self._storages is None
            or _text(kind) != "storage"
            or view is not None
            or not isinstance(of, _StorageType)
        ):
            raise ValueError("it refers to something else than storages")
        (count,) = _counts((count,))
        if count * of.dtype.itemsize > self._size:
            raise ValueError("a storage is larger than the file")
        return self._storages.setdefault(_text(key), _Storage(of.dtype, count))


def _unpickle(stream: io.BytesIO, storages: dict[str, _Storage] | None = None) -> Any:
    """Return the value of the pickle at the stream's position, which moves behind it.

    Args:
      stream: of a whole file.
      storages: those that the pickle refers to are added here.

    Raises:
      ValueError: it describes something else than arrays.
    """
    begin, end = stream.tell(), _checked(stream)
    size = stream.seek(0, io.SEEK_END)
    stream.seek(begin)
    return _Arrays(stream.read(end - begin), storages, size).load()


_TEXT = {"BINUNICODE", "SHORT_BINUNICODE"}
_NAME = {"GLOBAL", "STACK_GLOBAL"}
_PUT, _GET = {"BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"BINGET", "LONG_BINGET"}
_CHANGE = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"}
_ADMITTED = {
    *_TEXT,
    *_NAME,
    *_PUT,
    *_GET,
    *_CHANGE,
    *("BININT", "BININT1", "BININT2", "LONG1", "BINBYTES", "SHORT_BINBYTES"),
    *("NONE", "NEWTRUE", "NEWFALSE", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"),
    *("MARK", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE", "BINPERSID"),
    *("PROTO", "FRAME", "STOP"),
}
_OPCODES = {
    opcode.code.encode("latin-1"): opcode
    for opcode in pickletools.opcodes
    if opcode.name in _ADMITTED
}


def _checked(stream: io.BytesIO) -> int:
    """Check the instructions of a pickle without running any, and return where it ends.

    The stack of the machine is followed with, in place of every value, the name of the
    instruction that made it. Keys have to be text: when tuples are hashed, deep ones
    overflow the stack of the process and shared ones take exponential time. An index of
    the memo is at most the next one (from 0 or 1): memory up to it is taken.

    Args:
      stream: at the beginning of the pickle; moves behind it.

    Raises:
      ValueError: an instruction is not admitted, or is not used as arrays need it.
    """
    stack: list[str] = []
    marks: list[int] = []
    memo: dict[Any, str] = {}
    name = ""
    while name != "STOP":
        code = stream.read(1)
        if code not in _OPCODES:
            raise ValueError(f"it holds {code!r} where arrays are described")
        opcode = _OPCODES[code]
        name, argument = opcode.name, None
        if name == "GLOBAL":
            for _ in range(2):
                stream.readline()
        elif opcode.arg is not None:
            argument = opcode.arg.reader(stream)
        if name == "MARK":
            marks.append(len(stack))
            continue
        if name in _GET:
            stack.append(memo[argument])
            continue
        items: list[str] = []
        before = opcode.stack_before
        if pickletools.markobject in before:
            start = marks.pop()
            items, stack[start:] = stack[start:], []
            before = before[: before.index(pickletools.markobject)]
        needed = max(len(before), name in _PUT)
        if len(stack) - needed < (marks[-1] if marks else 0):
            raise ValueError("it takes a value that is not there")
        if name in _PUT:
            place = len(memo) if argument is None else argument
            if place > len(memo) + 1:
                raise ValueError("it leaves places of its memo empty")
            memo[place] = stack[-1]
            continue
        operands = [stack.pop() for _ in before]  # the topmost first
        if name in ("SETITEM", "SETITEMS"):
            keys = items[::2] if name == "SETITEMS" else operands[1:2]
            if not _TEXT.issuperset(keys):
                raise ValueError("a name is not text")
        if name == "REDUCE" and operands[1] not in _NAME:
            raise ValueError("it calls something that is no constructor of arrays")
        if name == "BUILD" and operands[1] != "REDUCE":
            raise ValueError("it changes something that is no array")
        if name == "STOP" and stack:
            raise ValueError("it leaves values behind")
        made = operands[-1] if name in _CHANGE else name
        stack += [made] * len(opcode.stack_after)
    return stream.tell()
