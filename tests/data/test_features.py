"""Features in files: what is written comes back, mapped where the format allows; what
is damaged is named.
"""

import json
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tta_jax as tta
from tta_jax.data.io import formats
from tta_jax.data.io.features import (
    FORMATS,
    Features,
    load_features,
    load_task,
    save_features,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 5)).astype(np.float32)
Y = np.arange(60) % 3
NAMES = ("ant", "bee", "süß, 'quoted'")
WHOLE = Features(
    X,
    Y,
    NAMES,
    np.arange(60) // 2,
    RNG.random(60) < 0.9,
    "x",
    {"encoder": "e", "n": [1, None, 2.5]},
)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int32"])
def test_everything_comes_back(suffix, dtype, tmp_path):
    values = (X * 100).astype(dtype)
    path = save_features(
        tmp_path / f"x{suffix}", Features(**{**vars(WHOLE), "features": values})
    )
    found = load_features(path)
    assert found.features.dtype == values.dtype
    np.testing.assert_array_equal(found.features, values)
    for name in ("labels", "groups", "labelled"):
        np.testing.assert_array_equal(getattr(found, name), getattr(WHOLE, name))
    assert found.class_names is not None
    assert (tuple(found.class_names), found.name, found.provenance) == (
        NAMES,
        "x",
        WHOLE.provenance,
    )
    # Only Parquet has to be decoded.
    assert isinstance(found.features, np.memmap) == (suffix != ".parquet")
    assert found.features.flags.aligned


@pytest.mark.parametrize("suffix", FORMATS)
def test_labels_may_be_text_or_absent_and_a_task_can_be_saved(suffix, tmp_path):
    text = np.array(NAMES)[Y]
    assert load_task(
        str(save_features(tmp_path / f"a{suffix}", Features(X, text)))
    ).class_names == tuple(sorted(NAMES))
    bare = load_features(save_features(tmp_path / f"b{suffix}", Features(X)))
    assert (bare.labels, bare.class_names, bare.provenance) == (None, None, {})
    task = tta.Task.from_arrays(X, text, groups=Y)
    again = load_task(str(save_features(tmp_path / f"c{suffix}", task)))
    assert again.class_names == task.class_names
    np.testing.assert_array_equal(again.labels, task.labels)
    np.testing.assert_array_equal(again.groups, task.groups)


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_same_features_give_the_same_bytes(suffix, tmp_path):
    a, b = (save_features(tmp_path / f"{name}{suffix}", WHOLE) for name in "ab")
    assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("suffix", FORMATS)
@given(data=st.data())
def test_any_shape_comes_back(suffix, tmp_path_factory, data):
    rows, dim = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 9))
    values = data.draw(
        hnp.arrays(np.float32, (rows, dim), elements=st.floats(-1e9, 1e9, width=32))
    )
    path = tmp_path_factory.mktemp("any") / f"x{suffix}"
    np.testing.assert_array_equal(
        load_features(save_features(path, Features(values))).features, values
    )


@pytest.mark.parametrize("suffix", FORMATS)
def test_blocks_join(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_BLOCK", 100)
    path = save_features(tmp_path / f"x{suffix}", WHOLE)
    np.testing.assert_array_equal(load_features(path).features, X)


def test_bfloat16_in_safetensors(tmp_path):
    import ml_dtypes

    values = X.astype(ml_dtypes.bfloat16)
    found = load_features(save_features(tmp_path / "x.safetensors", Features(values)))
    assert found.features.dtype == values.dtype
    assert (np.asarray(found.features) == values).all()
    for suffix in (".npz", ".npy", ".parquet"):
        with pytest.raises(ValueError, match="float32"):
            save_features(tmp_path / f"y{suffix}", Features(values))


def test_other_libraries_read_and_write_the_files(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    from safetensors.numpy import load_file, save_file

    np.testing.assert_array_equal(
        load_file(save_features(tmp_path / "x.safetensors", WHOLE))["features"], X
    )
    np.testing.assert_array_equal(
        np.load(save_features(tmp_path / "x.npz", WHOLE))["features"], X
    )
    np.testing.assert_array_equal(np.load(save_features(tmp_path / "x.npy", WHOLE)), X)
    table = pq.read_table(save_features(tmp_path / "x.parquet", WHOLE))
    assert table.schema.field("features").type == pa.list_(pa.float32(), 5)

    save_file({"features": X, "labels": Y}, tmp_path / "y.safetensors")
    np.savez_compressed(tmp_path / "y.npz", features=X, labels=Y)
    said = {
        "info": {"features": {"label": {"names": list(NAMES), "_type": "ClassLabel"}}}
    }
    for kind in (
        pa.list_(pa.float32()),
        pa.list_(pa.float64(), 5),
        pa.large_list(pa.float32()),
    ):
        columns = {"embedding": pa.array(X.tolist(), kind), "label": pa.array(Y)}
        table = pa.table(columns).replace_schema_metadata(
            {"huggingface": json.dumps(said)}
        )
        pq.write_table(table, tmp_path / "y.parquet", row_group_size=17)
        assert load_features(tmp_path / "y.parquet").class_names == list(NAMES)
        for name in ("y.safetensors", "y.npz", "y.parquet"):
            found = load_features(tmp_path / name)
            np.testing.assert_array_equal(found.features, X)
            np.testing.assert_array_equal(found.labels, Y)


def test_a_folder_of_parquet_files_is_one_data_set(tmp_path):
    for part in range(3):
        save_features(
            tmp_path / f"{part}.parquet",
            Features(X[part * 20 :][:20], Y[part * 20 :][:20]),
        )
    found = load_features(tmp_path)
    np.testing.assert_array_equal(found.features, X)
    np.testing.assert_array_equal(found.labels, Y)
    save_features(tmp_path / "3.parquet", Features(X[:, :3], Y))
    with pytest.raises(ValueError, match=r"column 'features' is .*3.parquet"):
        load_features(tmp_path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_truncated_files_are_refused_in_one_line(suffix, tmp_path):
    path = save_features(tmp_path / f"x{suffix}", WHOLE)
    whole = path.read_bytes()
    for share in (0, 0.01, 0.3, 0.9, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=r"^source: [^\n]*x\.[^\n]+$"):
            load_features(path, "source")


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_a_changed_byte_of_mapped_features_is_noticed(suffix, tmp_path):
    path = save_features(tmp_path / f"x{suffix}", WHOLE)
    whole = bytearray(path.read_bytes())
    at = whole.index(X.tobytes()[:40])
    whole[at + 99] ^= 1
    path.write_bytes(whole)
    with pytest.raises(
        ValueError, match=r"^path: [^\n]*(damaged|belongs to other features)[^\n]*$"
    ):
        load_features(path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_byte_order_and_text_groups(suffix, tmp_path):
    odd = Features(
        X.astype(">f4"),
        Y.astype(">i2"),
        ["a", "b", "c"],
        groups=np.array(["x", "longer"] * 30),
    )
    found = load_features(save_features(tmp_path / f"x{suffix}", odd))
    np.testing.assert_array_equal(found.features, X)
    np.testing.assert_array_equal(found.labels, Y)
    assert (found.groups == found.groups[0]).tolist() == [True, False] * 30
    whole = load_features(
        save_features(tmp_path / f"x{suffix}", Features(X, Y.astype(float)))
    )
    assert whole.task().class_names == (0, 1, 2)


@pytest.mark.parametrize("suffix", FORMATS)
def test_bytes_and_booleans_as_labels(suffix, tmp_path):
    for labels in (np.array([b"a", b"b", b"c"])[Y], Y == 1):
        found = load_task(
            str(save_features(tmp_path / f"x{suffix}", Features(X, labels)))
        )
        expected = tta.Task.from_arrays(X, labels)
        assert found.class_names == tuple(map(str, expected.class_names))
        np.testing.assert_array_equal(found.labels, expected.labels)


def test_names_may_hold_a_comma(tmp_path):
    assert load_task(str(save_features(tmp_path / "a,b.npz", WHOLE))).num_classes == 3


def column(**columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    return lambda path: pq.write_table(pa.table(columns), path)


ROWS = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
WRONG = {
    "no features": (
        "x.parquet",
        column(a=[1, 2]),
        "no column 'features'.*a \\(int64\\)",
    ),
    "two candidates": ("x.parquet", column(a=ROWS, b=ROWS), "no column 'features'"),
    "ragged": (
        "x.parquet",
        column(features=[[1.0, 2.0], [3.0], [4.0, 5.0]]),
        "1 features in row 1, but 2",
    ),
    "a missing row": (
        "x.parquet",
        column(features=[[1.0], None, [2.0]]),
        "no features in row 1",
    ),
    "a missing number": (
        "x.parquet",
        column(features=[[1, 2], [3, None]]),
        "missing numbers in rows 0 to 1",
    ),
    "a missing group": (
        "x.parquet",
        column(features=ROWS, groups=["a", None, "b"]),
        "no value in column 'groups', row 1",
    ),
    "not Parquet": ("x.parquet", lambda path: path.write_bytes(b"PAR1 no"), "damaged"),
    "other lengths": (
        "x.npz",
        lambda path: np.savez(path, features=X, labels=Y[:9]),
        "labels",
    ),
    "provenance": (
        "x.npz",
        lambda path: np.savez(path, features=X, provenance="no"),
        "provenance",
    ),
    "no tensor": (
        "x.safetensors",
        lambda path: path.write_bytes(b"\x02" + b"\0" * 7 + b"{}"),
        "no array 'features'",
    ),
    "an empty folder": ("folder", lambda path: path.mkdir(), "no .parquet file"),
    "other suffix": ("x.csv", lambda path: path.write_text("a"), "is not .npz or"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_file_of_features_is_named(case, tmp_path):
    name, write, says = WRONG[case]
    write(tmp_path / name)
    with pytest.raises(ValueError, match=rf"^source: [^\n]*{says}[^\n]*$"):
        load_task(str(tmp_path / name), "source")


@pytest.mark.parametrize(
    ("features", "says"),
    [
        (Features(X[0]), "features"),
        (Features(np.array([["a"]])), "features"),
        (Features(X, Y[:5]), "labels"),
        (Features(X, np.array([1, "a", None] * 20, object)), "labels"),
        (Features(X, Y, groups=Y[:5]), "groups"),
        (Features(X.astype(np.longdouble)), "features"),
        (Features(X[:, :0]), "features"),
        (Features(X.tolist()), "features"),
        (X, "features"),
        (Features(X, provenance={"path": object()}), "provenance"),
    ],
)
@pytest.mark.parametrize("suffix", FORMATS)
def test_nothing_wrong_is_written(features, says, suffix, tmp_path):
    with pytest.raises(ValueError, match=f"^{says}: "):
        save_features(tmp_path / f"x{suffix}", features)
    with pytest.raises(ValueError, match=r"^path: "):
        save_features(tmp_path / "x.txt", WHOLE)
    assert not list(tmp_path.glob("*x*"))


def test_a_neighbour_of_other_features_is_refused(tmp_path):
    save_features(tmp_path / "x.npy", WHOLE)
    np.save(tmp_path / "x.npy", X + 1)
    with pytest.raises(ValueError, match=r"belongs to other features"):
        load_features(tmp_path / "x.npy")
    np.save(tmp_path / "y.npy", Y)
    assert (
        load_features(f"{tmp_path}/x.npy,{tmp_path}/y.npy").labels.tolist()
        == Y.tolist()
    )


def test_large_members_are_mapped_not_read(tmp_path):
    """A member of 200 MB costs next to no memory."""
    import tracemalloc

    big = np.zeros((50_000, 1_000), np.float32)
    path = save_features(tmp_path / "x.npz", Features(big))
    tracemalloc.start()
    found = load_features(path)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.features.shape == big.shape
    assert held < 40e6
    with zipfile.ZipFile(path) as stored:
        assert stored.testzip() is None
