"""Archives whose members, headers or JSON say something else than they hold."""

import io
import json
import shutil
import zipfile

import numpy as np
import pytest

from tta_jax._internal.serialization import load, read_arrays, save
from tta_jax.data.extraction.cache import Chunk, Store
from tta_jax.data.io.features import load_features, load_head, load_task
from tta_jax.evaluation.rank_statistics import Estimate


def npy(array, header=None):
    """Bytes of an .npy; `header` in place of its own, of the same length."""
    stream = io.BytesIO()
    np.save(stream, array)
    whole = stream.getvalue()
    if header is None:
        return whole
    return (
        whole[:10]
        + header.ljust(len(whole) - 11 - array.nbytes).encode()
        + (b"\n" + whole[-array.nbytes :])
    )


def archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as stored:
        for name, content in members:
            stored.writestr(name, content)


def test_a_header_that_asks_for_less_than_is_there_is_refused(tmp_path):
    """NumPy stops reading there, and the checksum is never compared."""
    labels = np.arange(6)
    less = npy(labels, "{'descr': '<i8', 'fortran_order': False, 'shape': (4,), }")
    archive(tmp_path / "x.npz", [("labels.npy", less)])
    with np.load(tmp_path / "x.npz") as stored:
        assert len(stored["labels"]) == 4
    with pytest.raises(ValueError, match="32 bytes of data, but 48 are there"):
        read_arrays(tmp_path / "x.npz")


def test_damage_behind_what_a_header_asks_for_is_found(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, labels=np.arange(6), features=np.ones((6, 2)))
    whole = bytearray(path.read_bytes())
    whole[whole.index(np.arange(6).tobytes()) + 40] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"x\.npz' is damaged .*CRC"):
        load_features(path)


@pytest.mark.parametrize("field", [28, 30, 32])
def test_members_that_a_changed_length_hides_are_missed(field, tmp_path):
    """A name, extra data or a comment that reaches over the members that follow."""
    path = tmp_path / "x.npz"
    np.savez(path, features=np.ones((6, 2)), labels=np.arange(6), labelled=np.eye(6)[0])
    whole = bytearray(path.read_bytes())
    first = whole.index(b"PK\1\2")
    second = whole.index(b"PK\1\2", first + 1)
    third = whole.index(b"PK\1\2", second + 1)
    length = int.from_bytes(whole[second + field : second + field + 2], "little")
    size = whole.index(b"PK\5\6") - third + length
    whole[second + field : second + field + 2] = size.to_bytes(2, "little")
    path.write_bytes(whole)

    with pytest.raises(ValueError, match=r"x\.npz"):
        load_features(path)


@pytest.mark.parametrize("extra", [b"", b"\0" * 8])
def test_an_npy_has_the_size_that_it_says(extra, tmp_path):
    (tmp_path / "x.npy").write_bytes(npy(np.ones((4, 2))) + extra)
    if not extra:
        assert load_features(tmp_path / "x.npy").features.shape == (4, 2)
        return
    with pytest.raises(ValueError, match="64 bytes of data, but 72 are there"):
        load_features(tmp_path / "x.npy")


def test_members_of_one_name_and_items_without_bytes_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive(tmp_path / "x.npz", [("a.npy", npy(np.ones(2)))] * 2)
    with pytest.raises(ValueError, match="two members of one name"):
        read_arrays(tmp_path / "x.npz")
    nothing = npy(np.ones(1), "{'descr': '|V0', 'fortran_order': False, 'shape': (9,)}")
    archive(tmp_path / "y.npz", [("a.npy", nothing[:-8])])
    with pytest.raises(ValueError, match=r"in its member 'a.npy': its header says"):
        read_arrays(tmp_path / "y.npz")


def test_what_expands_too_much_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, features=np.zeros((1000, 100)), labels=np.arange(1000))
    assert load_features(path).features.shape == (1000, 100)
    monkeypatch.setenv("TTA_JAX_MOST_EXPANDED", "1000")
    with pytest.raises(
        ValueError, match=r"x\.npz' .* set TTA_JAX_MOST_EXPANDED higher"
    ):
        load_features(path)
    monkeypatch.setenv("TTA_JAX_MOST_EXPANDED", "-1")
    with pytest.raises(ValueError, match="TTA_JAX_MOST_EXPANDED: found '-1'"):
        load_features(path)


def test_a_chunk_under_another_name_is_not_returned(tmp_path):
    store, one, other = Store(tmp_path), "a" * 64, "ab" * 32
    store.write(one, Chunk(np.ones((2, 3), np.float32), np.arange(2), {}))
    found = store.read(one)
    assert found is not None
    assert found.features.shape == (2, 3)
    store.path(other).parent.mkdir(exist_ok=True)
    shutil.copy(store.path(one), store.path(other))
    assert store.read(other) is None


def retyped(path, change):
    """Write a stored value with another description, checksums included."""
    arrays = read_arrays(path)
    header = json.loads(arrays.pop("header").tobytes())
    change(header["content"]["fields"], arrays)
    with path.open("wb") as stream:
        blob = np.frombuffer(json.dumps(header).encode(), np.uint8)
        members = {"header": blob, **arrays}
        np.savez(stream, **members)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("value", "0.5"),
        ("low", None),
        ("high", {"tuple": [1.0]}),
        ("value", True),
        ("per_target", [1.0, 2.0]),
    ],
)
def test_a_stored_field_of_another_type_is_refused(field, value, tmp_path):
    path = tmp_path / "x"
    save(path, Estimate(0.5, 0.1, 0.9, np.ones(3), np.ones(3)))
    retyped(path, lambda fields, arrays: None)
    assert load(path).value == 0.5
    retyped(path, lambda fields, arrays: fields.update({field: value}))
    with pytest.raises(ValueError, match=r"^path: .*x' is damaged or not [^\n]*$"):
        load(path)


@pytest.mark.parametrize(
    "weight", [np.ones(3), np.ones((3, 2, 1)), np.array([["a"]]), np.ones((2, 2)) * 1j]
)
def test_a_head_of_another_rank_or_type_is_refused(weight, tmp_path):
    np.savez(tmp_path / "h.npz", weight=weight, bias=np.ones(2))
    with pytest.raises(ValueError, match=r"^head: '.*h\.npz' holds weight of dtype"):
        load_head(str(tmp_path / "h.npz"))


@pytest.mark.parametrize("depth", [150, 200_000])
def test_deep_provenance_is_refused(depth, tmp_path):
    text = np.array('{"a":' + "[" * depth + "]" * depth + "}")
    np.savez(tmp_path / "x.npz", features=np.ones((3, 2)), provenance=text)
    with pytest.raises(ValueError, match=r"x\.npz' .*nested"):
        load_task(str(tmp_path / "x.npz"))


def test_long_provenance_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TTA_JAX_MOST_JSON", "100")
    text = np.array(json.dumps({"a": "b" * 100}))
    np.savez(tmp_path / "x.npz", features=np.ones((3, 2)), provenance=text)
    with pytest.raises(ValueError, match=r"x\.npz' .*set TTA_JAX_MOST_JSON higher"):
        load_task(str(tmp_path / "x.npz"))


@pytest.mark.parametrize("order", ["<", ">"])
def test_characters_that_do_not_exist_are_refused(tmp_path, order):
    text = np.array(["ant", "bee"], f"{order}U3")
    numbers = text.view(f"{order}u4").copy()
    np.savez(tmp_path / "good.npz", x=text)
    assert read_arrays(tmp_path / "good.npz")["x"].tolist() == ["ant", "bee"]
    numbers[4] = 0x110000
    np.savez(tmp_path / "bad.npz", x=numbers.view(text.dtype))
    with pytest.raises(ValueError, match="characters that do not exist"):
        read_arrays(tmp_path / "bad.npz")
