"""Tables of features and raw data as users have them: shards, columns, labels."""

import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import tta_jax as tta
from tta_jax._internal.warning import DataWarning
from tta_jax.cli.main import main
from tta_jax.data import Features, load_features, open_data, save_features

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
LISTS = X.tolist()
Y = [0, 1, 0, 1, 0, 1]


def write(path, columns, metadata=None):
    table = pa.table(columns)
    if metadata is not None:
        table = table.replace_schema_metadata(metadata)
    pq.write_table(table, path)
    return path


def names_of(names):
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


# -- shards ----------------------------------------------------------------------------

FIRST = {"features": LISTS, "label": Y}


@pytest.mark.parametrize(
    ("other", "metadata", "words"),
    [
        ({"features": LISTS}, None, "b.parquet' has no column 'label'"),
        (FIRST | {"groups": Y}, None, "a.parquet' has no column 'groups'"),
        (
            {"features": LISTS, "label": pa.array(Y, pa.int32())},
            None,
            "column 'label' is int64 in .*a.parquet'.* int32 in .*b.parquet'",
        ),
        (
            {"features": LISTS, "label": list("ababab")},
            None,
            "column 'label' is int64 .* string",
        ),
        (
            {"features": pa.array(LISTS, pa.list_(pa.float32())), "label": Y},
            None,
            "column 'features' is list<element: double>.*float",
        ),
        (FIRST, names_of(["cat", "dog"]), "name other classes"),
    ],
)
def test_shards_that_differ_are_refused_by_file_and_column(
    tmp_path, other, metadata, words
):
    write(tmp_path / "a.parquet", FIRST)
    write(tmp_path / "b.parquet", other, metadata)
    with pytest.raises(ValueError, match=words):
        load_features(tmp_path)


def test_shards_in_another_order_of_columns_are_matched_by_name(tmp_path):
    write(tmp_path / "a.parquet", FIRST)
    write(tmp_path / "b.parquet", {"label": Y, "features": LISTS})
    task = load_features(tmp_path).task()
    np.testing.assert_allclose(task.features, np.r_[X, X])
    assert np.asarray(task.labels).tolist() == Y + Y


# -- columns ---------------------------------------------------------------------------


def test_features_of_several_columns_are_named(tmp_path, capsys):
    path = write(tmp_path / "t.parquet", {"image": LISTS, "text": LISTS, "label": Y})
    with pytest.raises(ValueError, match=r"image \(list.*--column"):
        load_features(path)
    assert load_features(path, column="text").task().dim == 3
    assert main(["info", str(path), "--column", "image", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["features"] == 3


@pytest.mark.parametrize("start", [0, 1])
def test_numbered_columns_are_features_side_by_side(tmp_path, start):
    columns = {f"f{k + start}": X[:, k] for k in range(3)}
    path = write(tmp_path / "t.parquet", columns | {"label": Y})
    found = load_features(path)
    np.testing.assert_array_equal(found.features, X)
    assert list(found.labels) == Y
    more = write(tmp_path / "m.parquet", columns | {"g0": X[:, 0], "g1": X[:, 1]})
    np.testing.assert_array_equal(load_features(more, column="g").features, X[:, :2])
    with pytest.raises(ValueError, match="--column"):
        load_features(more)


def test_numbered_columns_with_a_gap_or_a_hole_are_refused(tmp_path):
    gap = write(tmp_path / "g.parquet", {"f0": X[:, 0], "f2": X[:, 1], "label": Y})
    with pytest.raises(ValueError, match="no column 'features'"):
        load_features(gap)
    hole = {"f0": X[:, 0], "f1": pa.array([1.0, 2, None, 4, 5, 6]), "label": Y}
    with pytest.raises(ValueError, match="column 'f1', row 2"):
        load_features(write(tmp_path / "h.parquet", hole))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_labels_beside_an_npy_come_from_a_table(tmp_path, suffix):
    np.save(tmp_path / "x.npy", X)
    labels, path = ["a", "b", None, "NA", "a", "b"], tmp_path / f"y.{suffix}"
    if suffix == "parquet":
        write(path, {"id": Y, "label": labels})
    else:
        mark = "," if suffix == "csv" else "\t"
        rows = [f"{k}{mark}{label or ''}" for k, label in enumerate(labels)]
        path.write_text("\n".join([f"id{mark}label", *rows]) + "\n")
    task = load_features(f"{tmp_path / 'x.npy'},{path}").task()
    assert task.class_names == ("NA", "a", "b")
    assert np.asarray(task.labelled).tolist() == [True, True, False, True, True, True]
    with pytest.raises(ValueError, match=r"no column 'kind'; it has 'id', 'label'"):
        load_features(f"{tmp_path / 'x.npy'},{path}", label_column="kind")
    np.save(tmp_path / "less.npy", X[:4])
    with pytest.raises(ValueError, match="6 labels for 4 rows"):
        load_features(f"{tmp_path / 'less.npy'},{path}")


def test_columns_of_files_without_any_are_refused(tmp_path, capsys):
    save_features(tmp_path / "x.npz", tta.Task.from_arrays(X, Y))
    with pytest.raises(ValueError, match=r"^column: .*has no columns"):
        load_features(tmp_path / "x.npz", column="a")
    assert main(["info", str(tmp_path / "x.npz"), "--label-column", "a"]) == 2
    assert capsys.readouterr().err.startswith("tta-jax: label_column: found 'a'")


# -- labels ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Label", " label", "fine_label", "target", "kind"])
def test_a_column_of_labels_that_is_not_found_is_told(tmp_path, name, capsys):
    table = tmp_path / "t.csv"
    table.write_text(f"text,{name}\nhi,a\nyo,b\n")
    with pytest.warns(DataWarning, match=f"no column 'label'.*'{name}'") as told:
        assert open_data(table).labels is None
    path = write(tmp_path / "t.parquet", {"features": LISTS, name: Y})
    with pytest.warns(DataWarning, match=f"no column 'labels' or 'label'.*'{name}'"):
        assert load_features(path).labels is None
    assert ("did you mean" in str(told[0].message)) == (name != "kind")
    assert open_data(table, label_column=name).class_names == ("a", "b")
    assert load_features(path, label_column=name).task().num_classes == 2
    assert main(["info", str(path)]) == 0
    assert capsys.readouterr().err.count("tta-jax: note: label_column:") == 1


@pytest.mark.parametrize(
    ("label", "labelled", "names"),
    [
        ([-1] * 6, 0, ("cat", "dog")),
        ([-1, 0, 1, -1, 0, 1], 4, ("cat", "dog")),
        ([None, 0, 1, None, 0, 1], 4, ("cat", "dog")),
        ([0] * 6, 6, ("cat",)),
        ([1] * 6, 6, ("dog",)),
        ([-100, 1, 1, 1, 1, 1], 5, ("dog",)),
    ],
)
def test_labels_of_hugging_face_files(tmp_path, label, labelled, names):
    path = write(
        tmp_path / "t.parquet",
        {"features": LISTS, "label": label},
        names_of(["cat", "dog"]),
    )
    doubtful = -1 in label or -100 in label or len(names) == 1
    if doubtful:
        with pytest.warns(DataWarning):
            task = load_features(path).task()
    else:
        task = load_features(path).task()
    assert int(np.asarray(task.labelled).sum()) == labelled
    assert task.class_names == names


@pytest.mark.parametrize("suffix", ["npz", "npy", "safetensors", "parquet"])
@pytest.mark.parametrize("names", [["a\0", "a"], [1, "1"], ["a", "b\0c"], [2.0, "2.0"]])
def test_names_that_files_do_not_keep_are_refused(tmp_path, suffix, names):
    labels = np.array(names, object)[Y]
    task = tta.Task.from_arrays(X, labels, names)
    with pytest.raises(ValueError, match=r"^class_names: "):
        save_features(tmp_path / f"x.{suffix}", task)
    assert not list(tmp_path.iterdir())


# -- folders ---------------------------------------------------------------------------


def test_links_are_followed_and_those_that_lead_nowhere_are_told(tmp_path):
    root, more = tmp_path / "p", tmp_path / "more"
    for folder in (root / "cat", root / "dog", more):
        folder.mkdir(parents=True)
    for file in (
        root / "cat/1.png",
        root / "dog/1.PNG",
        more / "2.png",
        more / "3.png",
    ):
        Image.new("RGB", (4, 4)).save(file)
    os.symlink("nowhere/gone.png", root / "cat/5.png")
    os.symlink(more, root / "cat/batch")
    os.symlink(root / "cat", root / "cat/loop")
    with pytest.warns(DataWarning, match=r"1 pictures .* nowhere, e.g. 'cat/5.png'"):
        found = open_data(root)
    assert len(found) == 5
    assert np.bincount(found.labels).tolist() == [4, 1]
    bad = [i for i in range(5) if found.describe(i) == "cat/5.png"]
    with pytest.raises(OSError, match="No such file"):
        found.items[bad[0]]


def test_a_flat_folder_tells_of_links_too(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    os.symlink("gone.png", tmp_path / "2.png")
    assert len(open_data(tmp_path)) == 2


# -- damage ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "columns", [{"features": LISTS}, {"f0": X[:, 0], "f1": X[:, 1]}]
)
@pytest.mark.parametrize("declared", [5, 7, 1000])
def test_rows_read_are_compared_with_rows_declared(
    tmp_path, monkeypatch, columns, declared
):
    """A footer that lies must not give memory that was never written."""
    path = write(tmp_path / "t.parquet", columns | {"label": Y})

    class Lying(pq.ParquetFile):
        @property
        def metadata(self):
            groups = super().metadata.num_row_groups
            return SimpleNamespace(num_rows=declared, num_row_groups=groups)

    monkeypatch.setattr(pq, "ParquetFile", Lying)
    with pytest.raises(ValueError, match=rf"t.parquet' is damaged: .* {declared} rows"):
        load_features(path)


def test_a_folder_of_many_files_needs_few_descriptors(tmp_path):
    resource = pytest.importorskip("resource", reason="Unix alone limits descriptors")
    save_features(tmp_path / "0.parquet", Features(np.ones((2, 3)), np.arange(2)))
    for number in range(1, 300):
        shutil.copy(tmp_path / "0.parquet", tmp_path / f"{number}.parquet")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 50, before[1]))
    try:
        assert len(load_features(tmp_path)) == 600
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_rows_that_ask_for_much_more_than_the_file_has_are_refused(
    tmp_path, monkeypatch
):
    path = tmp_path / "x.parquet"
    pq.write_table(
        pa.table({"features": pa.array([[0.0] * 500] * 5000), "label": [0] * 5000}),
        path,
    )
    assert load_features(path).features.shape == (5000, 500)
    monkeypatch.setenv("TTA_JAX_MOST_EXPANDED", "1000000")
    with pytest.raises(ValueError, match=r"x\.parquet' .*TTA_JAX_MOST_EXPANDED"):
        load_features(path)


def test_a_changed_byte_of_a_page_is_found(tmp_path):
    path = tmp_path / "x.parquet"
    save_features(path, Features(np.arange(6000.0).reshape(1000, 6)))
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 4] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"x\.parquet' is damaged .*CRC"):
        load_features(path)
