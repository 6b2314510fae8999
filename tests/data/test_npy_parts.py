"""Features in numbered .npy files with tables beside them: the layout of clip-retrieval
and embedding-reader. Parts that disagree are named.
"""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tta_jax._internal.warning import DataWarning
from tta_jax.cli.main import main
from tta_jax.data import Features, load_features, save_features

X = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float16)
Y = list("ab" * 15)
SIZES = (10, 7, 13)


def layout(root, folder="img_emb", numbers=(0, 1, 2), label="label", tables=True):
    """Parts of X and Y as clip-retrieval writes them."""
    ends = np.cumsum(SIZES)
    for number, end, size in zip(numbers, ends, SIZES, strict=True):
        rows = slice(end - size, end)
        (root / folder).mkdir(parents=True, exist_ok=True)
        np.save(root / folder / f"{folder}_{number}.npy", X[rows])
        if tables:
            (root / "metadata").mkdir(exist_ok=True)
            columns = {
                label: Y[rows],
                "who": [f"p{i // 4}" for i in range(*rows.indices(30))],
            }
            table(root / f"metadata/metadata_{number}.parquet", columns)
    return root


def table(path, columns):
    pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize(
    "numbers", [(0, 1, 2), (9, 10, 11), ("00", "01", "02"), ("0008", "0009", "0010")]
)
def test_parts_are_joined_by_number(tmp_path, numbers):
    root = layout(tmp_path / "set", numbers=numbers)
    for place in (root, root / "img_emb"):
        found = load_features(place, group_column="who")
        np.testing.assert_array_equal(found.features, X)
        assert list(found.labels) == Y
        assert (found.features.dtype, found.name) == (np.float16, "set")
        task = found.task()
        assert (task.class_names, len(set(np.asarray(task.groups)))) == (("a", "b"), 8)


def test_numbers_and_not_names_decide_what_belongs_together(tmp_path):
    root = layout(tmp_path, numbers=(8, 9, 10))
    for number in (8, 9, 10):
        old = root / f"metadata/metadata_{number}.parquet"
        old.rename(root / f"metadata/metadata_{number:06d}.PARQUET")
    assert list(load_features(root).labels) == Y


def test_one_part_stays_mapped(tmp_path):
    np.save(tmp_path / "x_0.npy", X)
    assert isinstance(load_features(tmp_path).features, np.memmap)


def test_plain_parts_and_other_names_of_labels(tmp_path):
    root = layout(tmp_path / "a", tables=False)
    found = load_features(root)
    assert (found.labels, len(found)) == (None, 30)
    with pytest.raises(ValueError, match=r"^label_column: .*no folder 'metadata'"):
        load_features(root, label_column="label")
    with pytest.raises(ValueError, match=r"^column: .*no columns"):
        load_features(root, column="x")
    root = layout(tmp_path / "b", label="topic")
    with pytest.warns(DataWarning, match=r"no column 'labels' or 'label'"):
        assert load_features(root).labels is None
    assert list(load_features(root, label_column="topic").labels) == Y
    with pytest.raises(ValueError, match=r"^label_column: .*no column 'kind'"):
        load_features(root, label_column="kind")


def test_two_kinds_of_features_are_named_one_by_one(tmp_path):
    root = layout(tmp_path / "set")
    layout(root, "text_emb")
    with pytest.raises(ValueError, match=r"several folders.*img_emb', .*text_emb'$"):
        load_features(root)
    assert list(load_features(root / "text_emb").labels) == Y


WRONG = {
    "fewer rows": (
        lambda r: table(
            r / "metadata/metadata_1.parquet", {"label": Y[:6], "who": Y[:6]}
        ),
        r"img_emb_1.npy' has 7 rows, but .*metadata_1.parquet' has 6",
    ),
    "more features": (
        lambda r: np.save(r / "img_emb/img_emb_1.npy", np.zeros((8, 3), np.float16)),
        r"img_emb_1.npy' has 8 rows, but .*metadata_1.parquet' has 7",
    ),
    "no table": (
        lambda r: (r / "metadata/metadata_1.parquet").unlink(),
        r"img_emb_1.npy' has no table of number 1 in .*metadata_0.parquet",
    ),
    "no features": (
        lambda r: (r / "img_emb/img_emb_2.npy").unlink(),
        r"metadata_2.parquet' has no features of number 2 in .*img_emb'",
    ),
    "another width": (
        lambda r: np.save(r / "img_emb/img_emb_1.npy", np.zeros((7, 4), np.float16)),
        r"img_emb_0.npy' has shape \(10, 3\), but .*img_emb_1.npy' \(7, 4\)",
    ),
    "another dtype": (
        lambda r: np.save(r / "img_emb/img_emb_1.npy", np.zeros((7, 3), np.float32)),
        r"img_emb_0.npy' has dtype float16, but .*img_emb_1.npy' float32",
    ),
    "one axis": (
        lambda r: np.save(r / "img_emb/img_emb_1.npy", np.zeros(7, np.float16)),
        r"but .*img_emb_1.npy' \(7,\)",
    ),
    "another table": (
        lambda r: table(r / "metadata/metadata_1.parquet", {"label": Y[:7]}),
        r"metadata_1.parquet' has no column 'who'",
    ),
    "another type": (
        lambda r: table(
            r / "metadata/metadata_1.parquet", {"label": [1] * 7, "who": Y[:7]}
        ),
        r"column 'label' is string in .*metadata_0.*int64 in .*metadata_1",
    ),
    "damaged features": (
        lambda r: (r / "img_emb/img_emb_1.npy").write_bytes(b"x"),
        r"img_emb_1.npy' is damaged",
    ),
    "damaged table": (
        lambda r: (r / "metadata/metadata_1.parquet").write_bytes(b"x"),
        r"metadata_1.parquet' is damaged",
    ),
    "the same number twice": (
        lambda r: np.save(r / "img_emb/img_emb_01.npy", X[:7]),
        r"'img_emb_01.npy' and 'img_emb_1.npy' .*same number",
    ),
    "another array": (
        lambda r: np.save(r / "img_emb/mask_1.npy", X[:7]),
        r"'img_emb_0.npy' and 'mask_1.npy' .*different arrays",
    ),
    "no number": (
        lambda r: np.save(r / "img_emb/mean.npy", X[:7]),
        r"mean.npy' is no numbered part",
    ),
    "features that tell of themselves": (
        lambda r: save_features(r / "img_emb/img_emb_1.npy", Features(X[:7])),
        r"img_emb_1.npy' is no numbered part",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_parts_that_disagree_are_named(tmp_path, case):
    change, says = WRONG[case]
    root = layout(tmp_path / "set")
    change(root)
    with pytest.raises(ValueError, match=rf"^source: .*{says}") as error:
        load_features(root, "source")
    assert "\n" not in str(error.value)


def test_a_number_that_is_left_out_is_told(tmp_path):
    root = layout(tmp_path, numbers=(3, 4, 6))
    with pytest.warns(DataWarning, match=r"parts 3 to 6 without number 5"):
        assert len(load_features(root)) == 30


def test_arrays_beside_tables_are_refused(tmp_path):
    np.save(tmp_path / "x_0.npy", X)
    table(tmp_path / "y.parquet", {"label": Y})
    with pytest.raises(ValueError, match=r"holds .npy files and 'y.parquet'"):
        load_features(tmp_path)


def test_commands_read_parts_as_one_task(tmp_path, capsys):
    layout(tmp_path / "all/one")
    layout(tmp_path / "all/two", label="topic")
    one = str(tmp_path / "all/one")
    assert main(["info", one, "--group-column", "who", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["items"], facts["groups"], facts["name"]) == (30, 8, "one")
    words = ["metrics", "--features", one, "--metrics", "knn", "--csv"]
    assert main(words) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2
    assert rows[1].startswith(",,one,knn,")
