"""The archive: bit for bit, for every kind of value; damage of every byte is refused in
one way; nothing half-written.
"""

import errno
import json
import os
import stat

import jax
import numpy as np
import pytest

import tta_jax as tta
import tta_jax.analysis.analyze  # registers what can be stored
from tests.typed import on_host
from tta_jax._internal.files import write_atomically
from tta_jax._internal.serialization import FORMAT, load, save
from tta_jax.core import feature_maps

HEAD = tta.SoftmaxHead(np.arange(6.0).reshape(2, 3), np.ones(2))


def same(a, b):
    """Equal in type, structure, dtype and every bit."""
    leaves_a, tree_a = jax.tree.flatten(a)
    leaves_b, tree_b = jax.tree.flatten(b)
    assert tree_a == tree_b
    for x, y in zip(leaves_a, leaves_b, strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())


def completed():
    rng = np.random.default_rng(0)
    head = tta.SoftmaxHead(rng.normal(size=(3, 4)), rng.normal(size=3))
    phi = on_host(feature_maps.LogitAffine, rng.normal(size=(3, 4)), rng.normal(size=3))
    return phi.complete(head, np.ones(3, bool), (np.zeros(4), 4.0), (np.ones(4), 4.0))


MAPS = {
    name: start(4, jax.random.key(0)) for name, start in feature_maps.FAMILIES.items()
} | {
    "logit_affine": on_host(feature_maps.LogitAffine, np.ones((2, 4)), np.zeros(2)),
    "completed": completed(),
}


@pytest.mark.parametrize("family", sorted(MAPS))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_map_comes_back_bit_for_bit(family, dtype, tmp_path):
    rng = np.random.default_rng(0)
    noisy = jax.tree.map(
        lambda v: np.asarray(rng.normal(size=np.shape(v)), dtype), MAPS[family]
    )
    log_joint = np.array(
        [[-np.inf, -1e-320, np.nan]], dtype
    )  # infinities, subnormals, NaN
    value = tta.Transforms(log_joint, noisy)
    save(tmp_path / "x", value)
    same(load(tmp_path / "x"), value)


@pytest.mark.parametrize(
    "value",
    [
        0.1,
        -0.0,
        float("inf"),
        5e-324,
        2**70,
        True,
        None,
        'ä\n"',
        (),
        [],
        {},
        (1, [2.0, (None,)]),
        {("a", 1): {2: "b"}, 3: 4.5},
        {"array": 1, "kind": "x", "tuple": [1], "dict": {}},
    ],
)
def test_plain_values_come_back(value, tmp_path):
    save(tmp_path / "x", value)
    loaded = load(tmp_path / "x")
    assert loaded == value
    assert type(loaded) is type(value)
    assert repr(loaded) == repr(value)


@pytest.mark.parametrize(
    "array",
    [
        np.array([], np.float32),
        np.array(3, np.int8),
        np.array([["a", "é"]]),
        np.array([True]),
        np.arange(6.0).reshape(2, 3).T,
    ],
)
def test_arrays_of_every_kind_come_back(array, tmp_path):
    save(tmp_path / "x", array)
    loaded = load(tmp_path / "x")
    assert (loaded.dtype, loaded.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(loaded, array)


def test_every_cut_is_refused(tmp_path):
    path = tmp_path / "x"
    save(path, HEAD)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"path: .*damaged"):
            load(path)


def test_every_damaged_byte_is_refused_or_harmless(tmp_path):
    """Never another exception, never another value: checksums cover the contents,
    headers must be read with care.
    """
    path = tmp_path / "x"
    save(path, HEAD)
    whole = path.read_bytes()
    wrong = {}
    for place in range(len(whole)):
        for flip in (0x01, 0x08, 0xFF):
            damaged = bytearray(whole)
            damaged[place] ^= flip
            path.write_bytes(damaged)
            try:
                same(load(path), HEAD)
            except Exception as error:
                if not (
                    isinstance(error, ValueError) and str(error).startswith("path: ")
                ):
                    wrong.setdefault(f"{type(error).__name__}: {error}", (place, flip))
    assert not wrong


@pytest.mark.parametrize(
    "header",
    [
        [1],
        {},
        {"format": 1},
        {"format": "1", "content": 0},
        {"format": 1, "content": {"array": "a9"}},
        {"format": 1, "content": {"kind": "Unknown", "fields": {}}},
        {"format": 1, "content": {"kind": "SoftmaxHead", "fields": {"nonsense": 1}}},
        {"format": 1, "content": {"something": "else"}},
    ],
)
def test_archives_of_others_are_refused(header, tmp_path):
    with (tmp_path / "x").open("wb") as stream:
        np.savez(stream, header=np.frombuffer(json.dumps(header).encode(), np.uint8))
    with pytest.raises(ValueError, match="path: "):
        load(tmp_path / "x")


def test_newer_formats_pickles_and_folders_are_refused(tmp_path):
    path = tmp_path / "x"
    header = {"format": FORMAT + 1, "content": 1}
    with path.open("wb") as stream:
        np.savez(stream, header=np.frombuffer(json.dumps(header).encode(), np.uint8))
    with pytest.raises(ValueError, match="upgrade"):
        load(path)
    with path.open("wb") as stream:
        np.savez(stream, header=np.array([{"format": 1}], object))
    with pytest.raises(ValueError, match="damaged"):
        load(path)
    with pytest.raises(ValueError, match="no file"):
        load(tmp_path)
    save(path, HEAD)
    with pytest.raises(ValueError, match="not an Analysis"):
        tta.Analysis.load(path)


def test_a_failed_first_write_leaves_nothing(tmp_path):
    for error in (OSError("disk full"), KeyboardInterrupt(), MemoryError()):

        def fails(stream, error=error):
            stream.write(b"half")
            raise error

        with pytest.raises(type(error)):
            write_atomically(tmp_path / "sub" / "x", fails)
    assert list((tmp_path / "sub").iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_with_what_to_do(number, tmp_path):
    def write(stream):
        raise OSError(number, os.strerror(number))

    with pytest.raises(OSError, match=r"make room or name another folder.*x\.npz"):
        write_atomically(tmp_path / "x.npz", write)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["ä" * 100 + ".npz", "n" * 250])
def test_long_names_can_be_written(name, tmp_path):
    write_atomically(tmp_path / name, lambda stream: stream.write(b"x"))
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_write_replaces_the_file_with_ordinary_permissions(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_text("old")
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patched:
            # It belongs to the whole process: other threads would write with another.
            patched.delattr(os, "umask")
            save(path, HEAD)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    same(load(path), HEAD)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
