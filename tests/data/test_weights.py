"""Weights without the library that wrote them: what is read, and what is refused in one
line.
"""

import builtins
import collections
import contextlib
import io
import json
import os
import pickle
import struct

import jax
import numpy as np
import pytest

from tests.typed import anything
from tta_jax.data.encoders.weights import (
    read_array_pickle,
    read_legacy_torch,
    read_safetensors,
    taker,
)


class Global:
    """A name that a pickle refers to."""

    def __init__(self, module, name):
        self.module, self.name = module, name


PythonsPickler = anything(pickle._Pickler)


class Pickler(PythonsPickler):
    """Python's own pickler that writes names of libraries that are not there."""

    def save_global(self, obj, name=None):
        if isinstance(obj, Global):
            self.write(f"c{obj.module}\n{obj.name}\n".encode())
        else:
            super().save_global(obj, name)

    def persistent_id(self, obj):
        return obj.reference if isinstance(obj, Storage) else None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.save_global(obj)
        else:
            super().save(obj, save_persistent_id)


class Storage:
    def __init__(self, *reference):
        self.reference = reference


class Call:
    """Pickles as a call of a name."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return lambda: None, ()


def dumps(value, protocol=2):
    stream = io.BytesIO()
    pickler = Pickler(stream, protocol)

    def save_call(self, obj):
        self.save(obj.function)
        self.save(obj.arguments)
        self.write(pickle.REDUCE)

    pickler.dispatch = {**PythonsPickler.dispatch, Call: save_call}
    pickler.dump(value)
    return stream.getvalue()


FLOATS = Global("torch", "FloatStorage")


def tensor(key, count, shape, strides, offset=0, storage=FLOATS, view=None):
    return Call(
        Global("torch._utils", "_rebuild_tensor_v2"),
        Storage("storage", storage, key, "cpu", count, view),
        offset,
        shape,
        strides,
        False,
        collections.OrderedDict(),
    )


def legacy(tensors, storages, little_endian=True, magic=0x1950A86A20F9469CFC6C):
    """The bytes of a legacy torch file: `storages` are `(key, items)`."""
    head = [
        magic,
        1001,
        {"protocol_version": 1001, "little_endian": little_endian},
        tensors,
        [k for k, _ in storages],
    ]
    tail = [struct.pack("<q", len(items)) + items.tobytes() for _, items in storages]
    return b"".join([dumps(part) for part in head] + tail)


def good():
    items = np.arange(12, dtype="<f4")
    tensors = {
        "whole": tensor("0", 12, (3, 4), (4, 1)),
        "part": tensor("0", 12, (2, 2), (1, 4), 5),
        "one": tensor("1", 1, (), ()),
    }
    return tensors, [("0", items), ("1", np.array([7], "<f4"))]


@pytest.fixture
def write(tmp_path):
    def put(data):
        path = tmp_path / "weights.bin"
        path.write_bytes(data)
        return path

    return put


def refused(read, path):
    with pytest.raises(ValueError, match=r"^weights: ") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    assert len(str(caught.value)) < 400
    return str(caught.value)


# -- what is read ----------------------------------------------------------------------


def test_legacy_torch_files_are_read(write):
    found = read_legacy_torch(write(legacy(*good())))
    items = np.arange(12, dtype="f4")
    np.testing.assert_array_equal(found["whole"], items.reshape(3, 4))
    np.testing.assert_array_equal(found["part"], [[5, 9], [6, 10]])
    assert found["one"].shape == ()
    assert found["one"] == 7
    assert not found["whole"].flags.writeable


def test_what_torch_itself_writes_is_read(tmp_path):
    torch = pytest.importorskip(
        "torch", reason="torch is not installed; pip install torch"
    )
    state = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
    ).state_dict()
    state["turned"] = state["0.weight"].permute(2, 3, 1, 0)
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    found = read_legacy_torch(tmp_path / "old.pth")
    assert found.keys() == state.keys()
    for name, values in state.items():
        np.testing.assert_array_equal(found[name], values.numpy())
    torch.save(state, tmp_path / "new.pth")
    assert "_use_new_zipfile_serialization=False" in refused(
        read_legacy_torch, tmp_path / "new.pth"
    )


# NumPy writes bytes of protocol 2 through `codecs.encode`, which is not admitted.
@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("dtype", ["f2", "<f4", ">f4", "f8", "i1", ">i8", "u2"])
def test_pickles_of_arrays_are_read(write, protocol, dtype):
    arrays = {
        "a": [
            np.arange(6).reshape(2, 3).astype(dtype),
            np.asfortranarray(np.arange(6).reshape(2, 3).astype(dtype)),
        ]
    }
    found = read_array_pickle(write(pickle.dumps(arrays, protocol)))
    for ours, theirs in zip(found["a"], arrays["a"], strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


# -- what is refused -------------------------------------------------------------------


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


MARKER = "TTA_JAX_PICKLE_WAS_RUN"
RUN = f"import os; os.environ[{MARKER!r}] = '1'"
HOSTILE = {
    "system": Evil(os.system, "exit 1"),
    "putenv": Evil(os.putenv, MARKER, "1"),
    "exec": Evil(builtins.exec, RUN),
    "eval": Evil(
        builtins.eval, f"__import__('os').environ.__setitem__({MARKER!r}, '1')"
    ),
    "nested": [Evil(builtins.getattr, Evil(builtins.__import__, "os"), "system")],
    "attribute": {"a": [Evil(builtins.getattr, np.ndarray, "tofile")]},
    "class": {"a": [collections.Counter("abc")]},
    "object array": {"a": [np.array([Evil(builtins.exec, RUN)], object)]},
    "object dtype": {"a": [np.array([None, 1], object)]},
    "text array": {"a": [np.array(["x"])]},
    "number": 3,
    "set": {"a": {1, 2}},
    "no array": {"a": ["text"]},
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_and_nothing_runs(
    write, monkeypatch, name, protocol
):
    monkeypatch.setenv(MARKER, "0")
    data = pickle.dumps(HOSTILE[name], protocol)
    for read in (read_array_pickle, read_legacy_torch):
        refused(read, write(data))
    head = b"".join(
        dumps(part) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    )
    refused(read_legacy_torch, write(head + data))
    refused(read_legacy_torch, write(head + dumps({}) + data))
    assert os.environ[MARKER] == "0"


# Nested pairs of one and the same tuple, which would take 2^60 steps to hash, compare
# or print.
PAIRS = b")" + b"q\x00h\x00\x86" * 60
TRICKS = {
    "pairs as a key": b"\x80\x02}" + PAIRS + b"K\x01s.",
    "pairs as arrays": b"\x80\x02}X\x01\x00\x00\x00a" + PAIRS + b"s.",
    "pairs as a name": b"\x80\x04" + PAIRS + b"h\x00\x93.",
    "pairs as a dtype": b"cnumpy\ndtype\n" + PAIRS + b"K\x00K\x01\x87R.",
    "call of a module's attribute": b"cos\nsystem\n(S'exit 1'\ntR.",
    "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x12ndarray.__reduce_ex__\x93.",
    "name of another module": b"cnumpy.core.multiarray\nfromfile\n.",
    (
        "attributes of a constructor"
    ): b"cnumpy\ndtype\n}(X\x08\x00\x00\x00__code__K\x01ub.",
    "slots of a constructor": (
        b"ccollections\nOrderedDict\nN}X\x0c\x00\x00\x00__defaults__K\x01s\x86b."
    ),
    "call of an array": b"cnumpy\nndarray\nK\x01\x85R.",
    "call of a storage": b"ctorch\nFloatStorage\nK\x01\x85R.",
    "new object": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "old instance": b"(icollections\nOrderedDict\n.",
    "extension": b"\x80\x02\x82\x01.",
    "huge memo": b"\x80\x02}r\xff\xff\xff\xffK\x01.",
    "huge bytes": b"\x80\x04\x8e" + struct.pack("<q", 1 << 60) + b"abc.",
    "huge text": b"\x80\x02X\xff\xff\xff\xffabc.",
    "empty stack": b"\x80\x02.",
    "no mark": b"\x80\x02t.",
    "nothing in the memo": b"\x80\x02h\x07.",
    "items of text": b"\x80\x02X\x01\x00\x00\x00aX\x01\x00\x00\x00bK\x01s.",
    "unbuilt array": dumps(
        {
            "a": [
                Call(
                    Global("numpy.core.multiarray", "_reconstruct"),
                    Global("numpy", "ndarray"),
                    (0,),
                    "b",
                )
            ]
        }
    ),
    "long name": b"cos\n" + b"x" * 10_000 + b"\n.",
    "long key": dumps({"x" * 10_000: 1}),
    "nothing": b"",
    "noise": bytes(range(256)),
}


@pytest.mark.parametrize("name", TRICKS)
def test_tricks_are_refused(write, name):
    refused(read_array_pickle, write(TRICKS[name]))
    refused(read_legacy_torch, write(TRICKS[name]))


def broken(**change):
    options = {"key": "0", "count": 12, "shape": (3, 4), "strides": (4, 1), **change}
    return {"a": tensor(**options)}


DAMAGED = {
    "shape beyond the storage": broken(shape=(3, 5)),
    "offset beyond the storage": broken(offset=1),
    "strides beyond the storage": broken(strides=(5, 1)),
    "strides of zero": broken(shape=(1 << 40, 4), strides=(0, 1)),
    "negative stride": broken(strides=(-4, 1)),
    "negative offset": broken(offset=-1),
    "negative shape": broken(shape=(-3, 4)),
    "fractional shape": broken(shape=(3.0, 4)),
    "shape and strides": broken(strides=(4,)),
    "many dimensions": broken(shape=(1,) * 100, strides=(1,) * 100),
    "larger storage": broken(count=13),
    "huge storage": broken(count=1 << 62),
    "huger storage": broken(count=1 << 300),
    "another storage": broken(key="1"),
    "storage of something": broken(storage=collections.OrderedDict()),
    "view of a storage": broken(view=("v", 0, 3)),
    "list": [1],
}


@pytest.mark.parametrize("name", DAMAGED)
def test_tensors_that_their_file_does_not_hold_are_refused(write, name):
    refused(
        read_legacy_torch,
        write(legacy(DAMAGED[name], [("0", np.arange(12, dtype="<f4"))])),
    )


def test_other_legacy_files_are_refused(write):
    tensors, storages = good()
    assert "big-endian" in refused(
        read_legacy_torch, write(legacy(tensors, storages, little_endian=False))
    )
    assert "begin" in refused(
        read_legacy_torch, write(legacy(tensors, storages, magic=1))
    )
    refused(read_legacy_torch, write(legacy(tensors, storages) + b"x"))
    refused(read_legacy_torch, write(legacy(tensors, storages[:1])))
    refused(
        read_legacy_torch,
        write(legacy(tensors, [*storages, ("2", np.zeros(1, "<f4"))])),
    )


def test_every_truncation_is_refused(write):
    data = legacy(*good())
    for end in range(len(data)):
        refused(read_legacy_torch, write(data[:end]))
    data = pickle.dumps({"a": [np.arange(6.0).reshape(2, 3)]}, 4)
    for end in range(len(data)):
        refused(read_array_pickle, write(data[:end]))


def test_flipped_bytes_give_arrays_or_one_line(write):
    rng = np.random.default_rng(0)
    for read, data in (
        (read_legacy_torch, legacy(*good())),
        (read_array_pickle, pickle.dumps({"a": [np.arange(6.0).reshape(2, 3)]}, 4)),
    ):
        for _ in range(1500):
            changed = bytearray(data)
            changed[rng.integers(len(data))] = rng.integers(256)
            path, found = write(bytes(changed)), {}
            with contextlib.suppress(ValueError):
                found = read(path)
            if not found:
                refused(read, path)
            # Whatever is read lies in the file.
            assert sum(array.nbytes for array in jax.tree.leaves(found)) <= 3 * len(
                data
            )


def test_safetensors(write, tmp_path):
    pytest.importorskip(
        "safetensors",
        reason="safetensors is not installed; pip install 'tta-jax[data]'",
    )
    from safetensors.numpy import save

    data = save({"a": np.arange(6, dtype=np.float16).reshape(2, 3)})
    np.testing.assert_array_equal(
        read_safetensors(write(data))["a"], np.arange(6).reshape(2, 3)
    )

    def stored(kind, count):
        about = {"a": {"dtype": kind, "shape": [count], "data_offsets": [0, 4]}}
        text = json.dumps(about).encode()
        return len(text).to_bytes(8, "little") + text + b"\x80\x3f\x00\xc0"

    np.testing.assert_array_equal(
        read_safetensors(write(stored("BF16", 2)))["a"].astype(np.float32), [1, -2]
    )
    refused(read_safetensors, write(stored("F8_E4M3", 4)))
    for end in range(len(data)):
        refused(read_safetensors, write(data[:end]))
    refused(read_safetensors, tmp_path / "absent.safetensors")


def test_arrays_are_taken_as_expected(tmp_path):
    path = tmp_path / "w.bin"
    arrays = {
        "a": np.ones((2, 3), np.float16),
        "n": np.ones(2, np.int64),
        "bad": np.array([1.0, np.nan]),
    }
    take = taker(arrays, path)
    assert take("a", 2, 3).dtype == np.float32
    for name, shape, words in (
        ("b", (2, 3), "no array 'b'"),
        ("a", (3, 2), r"float16 of shape \(2, 3\), expected floats of shape \(3, 2\)"),
        ("n", (2,), "int64"),
        ("bad", (2,), "NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            take(name, *shape)
        assert str(caught.value).startswith(f"weights: {str(path)!r}")


# Cases of the C implementation of pickle: what takes its memory, its stack or its
# time. Each stands for a program that the check of the instructions refuses unrun.
X = b"X\x01\x00\x00\x00a"
DTYPE = b"cnumpy\ndtype\n" + X + b"K\x00K\x01\x87R"
NATIVE = {
    "deep tuples as a key": b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s.",
    "deep tuples in a list of keys": b"\x80\x02}()" + b"\x85" * 200_000 + b"K\x01u.",
    "memo far ahead": b"\x80\x02}q\x09.",
    "memo of a mark": b"\x80\x02(q\x00.",
    "value below a mark": b"\x80\x02}" + X + b"(K\x01s.",
    "tuple across a mark": b"\x80\x02K\x01(\x85.",
    "state of a dictionary": b"\x80\x02}}b.",
    "state of a name": b"\x80\x02ctorch\nFloatStorage\n}b.",
    "state of a storage's type": b"\x80\x02ctorch\nFloatStorage\n(K\x01tb.",
    "call of a call": b"\x80\x02" + DTYPE + b")R.",
    "call of text": b"\x80\x02" + X + b")R.",
    "storages where there are none": dumps(tensor("0", 1, (1,), (1,))),
    "a set": b"\x80\x04\x8f.",
    "a bytearray": b"\x80\x05\x96\x01\x00\x00\x00\x00\x00\x00\x00a.",
    "a buffer": b"\x80\x05\x97.",
    "extension of 4 bytes": b"\x80\x02\x84\x01\x00\x00\x00.",
    "long number": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "frame beyond the end": b"\x80\x04\x95" + struct.pack("<q", 1 << 40) + b"}.",
    "protocol of the future": b"\x80\x7f}.",
}


@pytest.mark.parametrize("name", NATIVE)
def test_what_would_harm_the_process_is_refused(write, name):
    for read in (read_array_pickle, read_legacy_torch):
        refused(read, write(NATIVE[name]))


def test_stand_ins_cannot_be_changed():
    """A second defence: without the check of the instructions, nothing that a name
    stands for takes attributes, a state or another class.
    """
    from tta_jax.data.encoders import weights

    for stand_in in weights._NAMES.values():
        if stand_in is None:
            continue
        assert not hasattr(stand_in, "__dict__")
        assert not isinstance(stand_in, type)
        for name in (*stand_in.__slots__, "__class__", "__call__", "other"):
            with pytest.raises((ValueError, AttributeError)):
                setattr(stand_in, name, int)
    for change in (b"}" + X + b"K\x01sb", b"N}" + X + b"K\x01s\x86b"):
        data = b"\x80\x02ccollections\nOrderedDict\n" + change + b"."
        with pytest.raises((ValueError, AttributeError)):
            weights._Arrays(data, None, len(data)).load()


def test_a_storage_larger_than_the_file_is_refused_before_it_is_read(write):
    tensors = {"a": tensor("0", 1000, (1,), (1,))}
    data = legacy(tensors, [("0", np.zeros(1, "<f4"))])
    assert "larger than the file" in refused(read_legacy_torch, write(data))


def test_one_list_does_not_make_any_number_of_arrays(write):
    arrays = [np.zeros(1, np.int8)] * 1000
    shared = {str(key): arrays for key in range(1000)}
    assert "more arrays" in refused(read_array_pickle, write(pickle.dumps(shared, 4)))
