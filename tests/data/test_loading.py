"""Raw data by name or path: folders of pictures and tables, read item by item; what is
wrong with them is named.
"""

import csv
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tta_jax._internal.warning import DataWarning
from tta_jax.data import extract_features, open_data
from tta_jax.data.extraction.adapters import as_encoder
from tta_jax.data.io import tables

RNG = np.random.default_rng(0)
TEXTS = ["plain", 'with "quotes", commas', "two\nlines", "NA", "null", "grün 漢字"]


def encoded(value):
    stream = io.BytesIO()
    Image.fromarray(np.full((5, 4, 3), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def album(root, counts, split=""):
    for name, count in counts.items():
        (root / split / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (root / split / name / f"{i}.png").write_bytes(encoded(i))
    return root


def first_pixel(examples, **more):
    made = as_encoder(lambda batch: batch[:, 0, 0].astype("float32"), "image")
    return extract_features(made, examples, **more)


def test_a_folder_of_class_folders(tmp_path):
    album(tmp_path / "pets", {"cat": 3, "dog": 2})
    (tmp_path / "pets/cat/notes.txt").write_text("not a picture")
    (tmp_path / "pets/cat/.hidden.png").write_text("nor this")
    (tmp_path / "pets/.git").mkdir()
    (tmp_path / "pets/cat/.checkpoints").mkdir()
    (tmp_path / "pets/cat/.checkpoints/0.png").write_bytes(encoded(0))
    (tmp_path / "pets/dog/deeper").mkdir()
    (tmp_path / "pets/dog/deeper/x.PNG").write_bytes(encoded(9))
    found = first_pixel(open_data(tmp_path / "pets"))
    assert (found.class_names, found.labels.tolist(), found.name) == (
        ("cat", "dog"),
        [0, 0, 0, 1, 1, 1],
        "pets",
    )
    assert found.features[:, 0].tolist() == [0, 1, 2, 0, 1, 9]
    assert found.provenance["source"]["files_that_are_no_pictures"] == 1


def test_splits_of_folders(tmp_path):
    album(album(tmp_path, {"cat": 2, "dog": 1}, "train"), {"cat": 1, "dog": 1}, "test")
    assert len(open_data(tmp_path, "train")) == 3
    assert open_data(tmp_path, "test").class_names == ("cat", "dog")
    with pytest.raises(ValueError, match=r"^split: .* name the split: test, train$"):
        open_data(tmp_path)
    for wrong in ("val", "..", "train/cat"):
        with pytest.raises(ValueError, match=r"^split: .* it has test, train$"):
            open_data(tmp_path, wrong)


def test_unlabelled_pictures(tmp_path):
    album(tmp_path, {"loose": 3})
    examples = open_data(tmp_path / "loose")
    assert (len(examples), examples.labels) == (3, None)


def test_what_is_wrong_with_a_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^data: folder .*holds no pictures"):
        open_data(tmp_path / "empty")
    mixed = album(tmp_path / "mixed", {"cat": 1})
    (mixed / "x.png").write_bytes(encoded(0))
    with pytest.raises(
        ValueError, match=r"^data: .*beside its class folders, e.g. 'x.png'"
    ):
        open_data(mixed)
    with pytest.raises(ValueError, match=r"^column: .*no columns"):
        open_data(album(tmp_path / "a", {"cat": 1}), column="text")
    gone = album(tmp_path / "gone", {"cat": 2, "dog": 0, "emu": 2})
    with pytest.raises(ValueError, match=r"^data: class 'dog' of 'gone' has no sample"):
        first_pixel(open_data(gone))
    found = first_pixel(open_data(gone), on_error="skip")
    assert (found.class_names, found.labels.tolist()) == (("cat", "emu"), [0, 0, 1, 1])
    (gone / "dog").rmdir()
    (gone / "cat/0.png").write_bytes(encoded(0)[:40])
    with pytest.raises(
        ValueError, match=r"^data: cat/0.png of 'gone' is not a readable picture"
    ):
        first_pixel(open_data(gone))
    examples = open_data(gone)
    (gone / "emu/1.png").unlink()
    found = first_pixel(examples, on_error="skip")
    assert [s["what"] for s in found.provenance["skipped"]] == [
        "cat/0.png",
        "emu/1.png",
    ]
    (gone / "cat/1.png").write_bytes(b"")
    found = first_pixel(open_data(gone), on_error="skip")
    assert (found.class_names, found.provenance["classes_without_sample"]) == (
        ("emu",),
        ["cat"],
    )


def table(path, columns):
    """Write columns in the format of the suffix; in batches of two where it has any."""
    stored = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(stored, path, row_group_size=2)
    elif path.suffix in (".arrow", ".feather"):
        new = pa.ipc.new_stream if path.suffix == ".arrow" else pa.ipc.new_file
        with new(path, stored.schema) as sink:
            sink.write_table(stored, max_chunksize=2)
    elif path.suffix in (".jsonl", ".ndjson"):
        lines = [json.dumps(row) for row in stored.to_pylist()]
        path.write_text("\n".join([*lines, ""]))
    else:
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(
                stream, delimiter="\t" if path.suffix == ".tsv" else ","
            )
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
    return path


def lengths(texts):
    return np.array([[len(text), len(text.encode())] for text in texts])


@pytest.mark.parametrize("suffix", tables.TABLES)
def test_texts_of_a_table(suffix, tmp_path):
    path = table(
        tmp_path / f"x{suffix}",
        {
            "text": TEXTS,
            "label": ["b", "a", "b", "a", "c", "c"],
            "n": [1, 2, 3, 4, 5, 6],
        },
    )
    examples = open_data(path)
    assert list(examples.items) == TEXTS
    assert (examples.class_names, examples.labels.tolist()) == (
        ("a", "b", "c"),
        [1, 0, 1, 0, 2, 2],
    )
    found = extract_features(lengths, examples, jit=False)
    np.testing.assert_array_equal(found.features, lengths(TEXTS))
    by_number = open_data(path, label_column="n", column="text")
    assert by_number.class_names == ("1", "2", "3", "4", "5", "6")
    with pytest.raises(
        ValueError, match=r"^column: .* has no column 'body'; it has text, label, n$"
    ):
        open_data(path, column="body")
    with pytest.raises(ValueError, match=r"^label_column: .* has no column 'class'"):
        open_data(path, label_column="class")
    with pytest.raises(ValueError, match=r"^split: .* has no column 'split'"):
        open_data(path, "train")
    if suffix not in (".csv", ".tsv"):  # where all is text
        with pytest.raises(ValueError, match=r"^column: .*int64 in column 'n'"):
            open_data(path, column="n")


@pytest.mark.parametrize("suffix", tables.TABLES)
def test_splits_and_empty_documents_of_a_table(suffix, tmp_path):
    columns = {
        "split": ["train", "test"] * 3,
        "text": ["a", "bb", "ccc", " ", "d", "ee"],
        "label": list("xyxyxx"),
    }
    path = table(tmp_path / f"x{suffix}", columns)
    found = extract_features(
        lengths, open_data(path, "train"), jit=False, on_error="skip"
    )
    assert found.features[:, 0].tolist() == [1, 3, 1]
    with pytest.raises(
        ValueError, match=r"^split: .*no row with split 'val'; it has test, train$"
    ):
        open_data(path, "val")
    with pytest.raises(
        ValueError, match=r"^data: row 3 of 'x' has no text; repair or remove it"
    ):
        extract_features(lengths, open_data(path, "test"), jit=False)
    assert extract_features(
        lengths, open_data(path, "test"), jit=False, on_error="skip"
    ).features[:, 0].tolist() == [
        2,
        2,
    ]


@pytest.mark.parametrize("suffix", tables.TABLES)
def test_labels_of_another_split_do_not_matter(suffix, tmp_path):
    columns = {
        "split": ["train", "test", "train"],
        "text": ["a", "b", "c"],
        "label": ["10", "", "9"],
    }
    examples = open_data(table(tmp_path / f"x{suffix}", columns), "train")
    assert (examples.class_names, examples.labels.tolist(), list(examples.items)) == (
        ("9", "10"),
        [1, 0],
        ["a", "c"],
    )
    with pytest.warns(DataWarning, match="none of the 1 items of 'x' has a label"):
        examples = open_data(table(tmp_path / f"x{suffix}", columns), "test")
    assert (examples.labels, examples.class_names) == (None, None)


def test_odd_columns(tmp_path):
    import datetime

    path = tmp_path / "x.parquet"
    columns = {
        "text": pa.array(["a", "b"]).dictionary_encode(),
        "whole": [2.0, 1.0],
        "half": [0.5, 1.0],
        "yes": [True, False],
    }
    columns |= {
        "day": [datetime.date(2026, 1, 1)] * 2,
        "list": [[1], [2]],
        "{a}": ["x", "y"],
    }
    pq.write_table(
        pa.table(columns).replace_schema_metadata({"huggingface": "[1]"}), path
    )
    with pytest.warns(DataWarning, match="no column 'label'"):
        assert list(open_data(path).items) == ["a", "b"]

    def names(column):
        return open_data(path, label_column=column).class_names

    assert (names("whole"), names("yes"), names("{a}")) == (
        ("1", "2"),
        ("False", "True"),
        ("x", "y"),
    )
    for column in ("half", "day", "list"):
        with pytest.raises(
            ValueError,
            match=rf"^label_column: .*in column '{column}'; texts or whole numbers",
        ):
            names(column)
    with pytest.raises(ValueError, match=r"^column: .*no column '\{b\}'; it has"):
        open_data(path, column="{b}")


def test_a_long_text(tmp_path):
    path = table(
        tmp_path / "x.csv", {"text": ["a" * 20_000_000, "b"], "label": ["x", "y"]}
    )
    assert [len(t) for t in open_data(path).items] == [20_000_000, 1]


def test_missing_values_of_a_table(tmp_path):
    pq.write_table(
        pa.table({"text": ["a", None], "label": ["x", "y"]}), tmp_path / "x.parquet"
    )
    assert list(open_data(tmp_path / "x.parquet").items) == ["a", ""]
    pq.write_table(
        pa.table({"text": ["a", "b"], "label": ["x", None]}), tmp_path / "x.parquet"
    )
    found = open_data(tmp_path / "x.parquet")
    assert (found.class_names, found.labelled.tolist()) == (("x",), [True, False])


def test_pictures_of_a_table_as_hugging_face_writes_them(tmp_path):
    pictures = [{"bytes": encoded(i), "path": None} for i in range(4)]
    said = (
        '{"info": {"features": {"label": {"names": ["cat", "dog"], "_type": '
        '"ClassLabel"}}}}'
    )
    stored = pa.table(
        {"image": pictures, "label": [0, 1, 0, 1]}
    ).replace_schema_metadata({"huggingface": said})
    pq.write_table(stored, tmp_path / "x.parquet", row_group_size=3)
    found = first_pixel(open_data(tmp_path / "x.parquet"))
    assert (found.features[:, 0].tolist(), found.class_names) == (
        [0, 1, 2, 3],
        ("cat", "dog"),
    )
    pictures[2]["bytes"] = None
    pq.write_table(
        pa.table({"image": pictures, "label": [0, 1, 0, 1]}), tmp_path / "x.parquet"
    )
    with pytest.raises(
        ValueError, match=r"^data: row 2 of 'x' is not a readable picture"
    ):
        first_pixel(open_data(tmp_path / "x.parquet"))


@pytest.mark.parametrize("suffix", tables.TABLES)
def test_damaged_and_absent_tables(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    with pytest.raises(ValueError, match=r"^data: there is no file"):
        open_data(path)
    for content in (
        b"",
        b"text,text\na,b\n",
        b'text,label\n"a',
        b"text,label\n1,2,3\n",
        b"text\n\xff\xfe\n",
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^(data|column): [^\n]+$"):
            list(open_data(path).items)


def test_tables_are_read_a_group_at_a_time(tmp_path):
    """100 MB of text cost a row group."""
    import tracemalloc

    path = tmp_path / "x.parquet"
    with pq.ParquetWriter(
        path, pa.schema({"text": pa.string(), "label": pa.int32()})
    ) as writer:
        for k in range(100):
            writer.write_table(
                pa.table(
                    {
                        "text": [f"{k}" * 1000] * 500,
                        "label": pa.array([k] * 500, pa.int32()),
                    }
                )
            )
    examples = open_data(path)
    tracemalloc.start()
    total = sum(len(examples.items[i]) for i in range(len(examples)))
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 10 * 500_000 + 90 * 1_000_000
    assert held < 5e6


def test_other_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("", "~/nothing/here", str(tmp_path / "absent"), "./absent"):
        with pytest.raises(ValueError, match=r"^data: (there is no|found an empty)"):
            open_data(name)
    (tmp_path / "x.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"features in files need no encoder"):
        open_data(tmp_path / "x.npz")


def test_a_random_part_is_the_same_each_time(tmp_path):
    path = table(
        tmp_path / "x.csv",
        {"text": [str(i) for i in range(50)], "label": [i % 2 for i in range(50)]},
    )
    some = open_data(path).limit(10, seed=3)
    assert list(some.items) == list(open_data(path).limit(10, seed=3).items)
    assert list(some.items) != list(open_data(path).limit(10, seed=4).items)
    assert some.describe(0) == f"row {some.items[0]}"
    assert some.labels.tolist() == [int(t) % 2 for t in some.items]
    assert len(open_data(path).limit(99)) == 50
    assert some.provenance["limit"] == 10
