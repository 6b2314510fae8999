"""Raw data in tables: JSON Lines, Arrow, shards of one table, encodings, ids, groups,
rows without a label. What is wrong is named by file and place.
"""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tta_jax._internal.warning import DataWarning
from tta_jax.cli.main import main
from tta_jax.data import (
    as_examples,
    extract_features,
    load_features,
    open_data,
    save_features,
)
from tta_jax.data.io.tables import TABLES

ROWS = {"text": ["a", "bb", "ccc", "dddd"], "label": ["x", "y", "x", "y"]}


def write(path, columns, **options):
    """Write columns in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = pa.table(columns)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        pq.write_table(stored, path)
    elif suffix in (".arrow", ".feather"):
        with pa.ipc.new_file(path, stored.schema) as sink:
            sink.write_table(stored)
    elif suffix in (".jsonl", ".ndjson"):
        lines = [json.dumps(row, ensure_ascii=False) for row in stored.to_pylist()]
        path.write_text("\n".join([*lines, ""]), **options)
    else:
        mark = options.pop("mark", "\t" if suffix == ".tsv" else ",")
        rows = [list(columns), *zip(*columns.values(), strict=True)]
        cells = [["" if v is None else str(v) for v in row] for row in rows]
        path.write_text("\n".join(map(mark.join, cells)) + "\n", **options)
    return path


def lengths(texts):
    return np.array([[len(text)] for text in texts])


def features(data, **options):
    return extract_features(lengths, data, jit=False, cache=False, **options)


# -- JSON Lines ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "b", "label"', "no JSON in line 2 .*cut off"),
        ("[1, 2]", "a list in line 2; each line needs an object"),
        ('"text"', "a str in line 2"),
        ('{"text": "b", "text": "c", "label": 1}', "'text' twice .* of line 2"),
        ("not json", "no JSON in line 2"),
        ("[" * 100_000, "no JSON in line 2"),
        ('{"text": 1, "label": "x"}', "has a text in line 1 .*whole number in line 2"),
        ('{"text": "b", "label": 1}', "^label_column: .*whole number in line 2 of"),
        ('{"text": ["b"], "label": "x"}', "^column: .*list or object in line 2"),
        ('{"text": "b", "label": {"x": 1}}', "^label_column: .*list or object"),
        ('{"text": "b", "label": true}', "^label_column: .*truth value in line 2"),
    ],
)
def test_lines_that_are_no_records_are_named(tmp_path, line, says):
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"text": "a", "label": "x"}}\n{line}\n')
    with pytest.raises(ValueError, match=says) as error:
        open_data(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "gr\xfcn"}\n')
    with pytest.raises(ValueError, match=r"no JSON in line 2 .*--encoding latin-1"):
        open_data(path)
    assert list(open_data(path, encoding="latin-1").items) == ["a", "grün"]


def test_blank_lines_marks_and_absent_fields(tmp_path):
    path = tmp_path / "x.ndjson"
    rows = ['{"text": "a", "label": 2}', "", '{"text": "b"}', '{"label": 10.0}']
    path.write_text("\r\n".join(rows), encoding="utf-8-sig")
    found = open_data(path)
    assert list(found.items) == ["a", "b", ""]
    assert found.class_names == ("2", "10")
    assert found.labelled.tolist() == [True, False, True]


def test_long_files_are_read_in_blocks(tmp_path):
    texts = [f"{i:05d}" for i in range(5000)]
    path = write(tmp_path / "x.jsonl", {"text": texts})
    found = open_data(path)
    assert [found.items[i] for i in (4999, 0, 1023, 1024, 3000)] == [
        texts[i] for i in (4999, 0, 1023, 1024, 3000)
    ]


# -- shards ----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [*TABLES, ".PARQUET", ".Jsonl", ".CSV"])
def test_shards_in_sub_folders_are_one_table(tmp_path, suffix):
    root = tmp_path / "all"
    write(root / f"a/part-0{suffix}", ROWS)
    write(root / f"b/deep/part-1{suffix}", {"label": ["z"], "text": ["e"]})
    (root / ".cache").mkdir()
    (root / ".cache" / f"x{suffix}").write_bytes(b"damaged")
    (root / "README.md").write_text("notes")
    found = open_data(root)
    assert list(found.items) == [*ROWS["text"], "e"]
    assert (found.class_names, found.labels.tolist()) == (
        ("x", "y", "z"),
        [0, 1, 0, 1, 2],
    )
    assert found.describe(4) == f"row 0 of b/deep/part-1{suffix}"
    assert (found.name, found.provenance["files"]) == ("all", 2)


OTHER = {
    "no label": {"text": ["e"]},
    "more": {**ROWS, "stars": [1, 2, 3, 4]},
    "another type": {"text": ["e"], "label": [1]},
    "another name": {"Text": ["e"], "label": ["x"]},
    "nothing in common": {"a": [1.5]},
}


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".jsonl"])
@pytest.mark.parametrize("case", OTHER)
def test_shards_that_differ_are_named_with_the_column(tmp_path, suffix, case):
    write(tmp_path / f"a{suffix}", ROWS)
    write(tmp_path / f"b{suffix}", OTHER[case])
    with pytest.raises(ValueError, match=r"column|label") as error:
        open_data(tmp_path)
    said = str(error.value)
    assert f"b{suffix}" in said or f"a{suffix}" in said
    if case == "another type":
        assert f"a{suffix}" in said
        assert f"b{suffix}" in said
        assert "'label'" in said


def test_folders_with_tables_of_several_formats_are_refused(tmp_path):
    write(tmp_path / "a.csv", ROWS)
    write(tmp_path / "b.parquet", ROWS)
    with pytest.raises(ValueError, match=r"several formats, 'a.csv' and 'b.parquet'"):
        open_data(tmp_path)


@pytest.mark.parametrize(
    "files",
    [
        ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"),
        ("data/train-00000-of-00001", "data/train_1", "data/test-00000-of-00001"),
        ("train/0", "train/1", "test/0"),
        ("train-0", "train-1", "test"),
        ("train.0", "train.1", "test.0"),
    ],
)
def test_splits_of_shards(tmp_path, files):
    for i, file in enumerate(files):
        write(tmp_path / f"{file}.parquet", {"text": [str(i)], "label": ["x"]})
    assert list(open_data(tmp_path, "train").items) == ["0", "1"]
    assert list(open_data(tmp_path, "test").items) == ["2"]
    with pytest.raises(ValueError, match=r"^split: .*name one: test, train$"):
        open_data(tmp_path)
    with pytest.raises(ValueError, match=r"^split: .*no files of 'val'.*test, train"):
        open_data(tmp_path, "val")


def test_a_column_of_splits_counts_where_no_file_is_called_so(tmp_path):
    for k in range(2):
        columns = {"split": ["train", "test"], "text": [f"a{k}", f"b{k}"]}
        write(tmp_path / f"part-{k}.jsonl", columns)
    found = open_data(tmp_path, "test")
    assert list(found.items) == ["b0", "b1"]
    assert found.describe(1) == "row 1 of part-1.jsonl"


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".arrow", ".jsonl"])
def test_braces_name_several_files(tmp_path, suffix):
    for k in range(8, 12):
        write(tmp_path / f"s-{k:03d}{suffix}", {"text": [str(k)]})
    found = open_data(f"{tmp_path}/s-{{008..011}}{suffix}")
    assert list(found.items) == ["8", "9", "10", "11"]
    assert list(open_data(f"{tmp_path}/s-{{010,008}}{suffix}").items) == ["10", "8"]
    with pytest.raises(ValueError, match=rf"^data: there is no file .*s-012{suffix}'$"):
        open_data(f"{tmp_path}/s-{{008..012}}{suffix}")


@pytest.mark.parametrize("inside", ["3..1", "a..c", "", "a", "a,a", "1..2..3", "..5"])
def test_braces_that_are_no_list_or_range_are_refused(tmp_path, inside):
    with pytest.raises(ValueError, match=r"^data: found \{.*give a range"):
        open_data(f"{tmp_path}/s-{{{inside}}}.csv")


# -- damage ----------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["file", "stream"])
@pytest.mark.parametrize("damage", ["half", "empty", "head", "text", "zeros"])
def test_damaged_arrow_files_are_named(tmp_path, format, damage):
    path = tmp_path / "x.arrow"
    stored = pa.table(ROWS)
    with (pa.ipc.new_file if format == "file" else pa.ipc.new_stream)(
        path, stored.schema
    ) as sink:
        sink.write_table(stored)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "half": whole[: len(whole) // 2],
            "empty": b"",
            "head": whole[7:],
            "text": b"text,label\na,b\n",
            "zeros": bytes(500),
        }[damage]
    )
    with pytest.raises(ValueError, match=r"^(data|column): .*x.arrow'") as error:
        list(open_data(path).items)
    assert "\n" not in str(error.value)


# -- how texts are stored --------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".ndjson"])
@pytest.mark.parametrize(
    "encoding", ["latin-1", "utf-16", "utf-16-le", "cp1252", "utf-8-sig", "utf_32"]
)
def test_texts_in_other_encodings(tmp_path, suffix, encoding):
    columns = {"text": ["grün", "blé", 'x "y"'], "label": ["é", "ü", "é"]}
    path = write(tmp_path / f"x{suffix}", columns, encoding=encoding)
    found = open_data(path, encoding=encoding)
    assert list(found.items) == columns["text"]
    assert found.class_names == ("é", "ü")


@pytest.mark.parametrize(
    ("encoding", "says"),
    [
        ("klingon", "^encoding: found 'klingon', which is unknown"),
        ("rot13", "^encoding: found 'rot13', which is unknown"),
        ("", "^encoding: found '', which is unknown"),
        ("utf\0", "^encoding: found"),
        ("ascii", "^encoding: .*x.csv' is not ascii"),
        ("utf-32", "^encoding: .*x.csv' is not utf-32"),
        (None, "x.csv' .*--encoding latin-1"),
    ],
)
def test_encodings_that_do_not_fit_are_named(tmp_path, encoding, says):
    path = write(tmp_path / "x.csv", {"text": ["grün"] * 9}, encoding="latin-1")
    with pytest.raises(ValueError, match=says):
        open_data(path, encoding=encoding)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_utf_16_is_recognised_and_named(tmp_path, suffix):
    path = write(tmp_path / f"x{suffix}", {"text": ["a"]}, encoding="utf-16")
    with pytest.raises(ValueError, match=r"^encoding: .*begins as UTF-16"):
        open_data(path)


@pytest.mark.parametrize(("given", "mark"), [("tab", "\t"), (";", ";"), ("|", "|")])
def test_separators(tmp_path, given, mark):
    path = write(tmp_path / "x.csv", ROWS, mark=mark)
    with pytest.raises(ValueError, match=r"^column: .*\(--separator\)"):
        open_data(path)
    assert list(open_data(path, separator=given).items) == ROWS["text"]


@pytest.mark.parametrize("given", ["", ";;", "é", '"', "\n", "tabs"])
def test_separators_that_are_none_are_refused(tmp_path, given):
    path = write(tmp_path / "x.csv", ROWS)
    with pytest.raises(ValueError, match=r"^separator: found .*give 'tab' or one"):
        open_data(path, separator=given)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
@pytest.mark.parametrize("option", ["separator", "encoding"])
def test_options_of_texts_are_refused_for_other_tables(tmp_path, suffix, option):
    path = write(tmp_path / f"x{suffix}", ROWS)
    with pytest.raises(ValueError, match=rf"^{option}: found ';', but .*is not .csv"):
        open_data(path, **{option: ";"})


# -- ids and groups --------------------------------------------------------------------

NAMED = {
    **ROWS,
    "key": ["k0", "k1", "k2", "k3"],
    "author": ["p", "q", "p", "r"],
}


@pytest.mark.parametrize("suffix", TABLES)
def test_ids_and_groups_travel_with_the_items(tmp_path, suffix):
    path = write(tmp_path / f"x{suffix}", {**NAMED, "text": ["a", "bb", " ", "bb"]})
    data = open_data(path, id_column="key", group_column="author")
    assert data.describe(2) == "row 2 (k2)"
    assert data.groups.tolist() == [0, 1, 0, 2]
    part = data.take(np.array([3, 0]))
    assert (part.describe(0), part.groups.tolist()) == ("row 3 (k3)", [2, 0])
    found = features(data, on_error="skip")
    assert found.provenance["skipped"][0]["what"] == "row 2 (k2)"
    # "bb" of q is a copy of "bb" of r.
    assert found.groups[1] == found.groups[2] != found.groups[0]
    assert found.provenance["copies"] == 1


def test_groups_and_copies_are_joined_over_several_steps(tmp_path):
    columns = {
        "text": ["a", "b", "b", "c", "c", "d", "e"],
        "label": list("xyxyxyx"),
        "author": [1, 1, 2, 2, 3, 4, 4],
    }
    found = features(
        open_data(write(tmp_path / "x.jsonl", columns), group_column="author")
    )
    assert found.groups.tolist() == [0, 0, 0, 0, 0, 5, 5]
    assert len(set(features(as_examples(columns["text"])).groups.tolist())) == 5


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("author", ["p", None, "p", "r"], "^group_column: .*no value in row 1"),
        ("author", ["p", "", "p", "r"], "^group_column: .*no value in row 1"),
        ("author", [[1], [2], [1], [2]], "^group_column: .*lists or objects"),
        ("author", [1.0, float("nan"), 1.0, 2.0], "^group_column: .*value in row 1"),
        ("other", ["p"] * 4, "^group_column: .*no column 'author'; it has text"),
    ],
)
def test_groups_that_are_none_are_refused(tmp_path, column, values, says):
    path = write(tmp_path / "x.parquet", {**ROWS, column: values})
    with pytest.raises(ValueError, match=says):
        open_data(path, group_column="author")


def test_ids_that_repeat_are_told(tmp_path):
    path = write(tmp_path / "x.parquet", {**ROWS, "key": ["a", "b", "a", None]})
    with pytest.warns(DataWarning, match=r"1 ids .*'a' in row 0 and row 2"):
        data = open_data(path, id_column="key")
    assert [data.describe(i) for i in (2, 3)] == ["row 2 (a)", "row 3"]
    with pytest.raises(ValueError, match=r"^id_column: .*no column 'k'"):
        open_data(path, id_column="k")


# -- labels ----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", TABLES)
@pytest.mark.parametrize(
    ("labels", "labelled", "names"),
    [
        (["x", None, "y", "x"], [1, 0, 1, 1], ("x", "y")),
        (["x", "", "y", "  "], [1, 0, 1, 0], ("x", "y")),
        ([0, 1, None, 1], [1, 1, 0, 1], ("0", "1")),
        ([0, 1, -1, 1], [1, 1, 0, 1], ("0", "1")),
        ([10, 9, 0, -100], [1, 1, 1, 0], ("0", "9", "10")),
        (["01", "1", None, "1"], [1, 1, 0, 1], ("01", "1")),
    ],
)
def test_rows_without_a_label_are_unlabelled(tmp_path, suffix, labels, labelled, names):
    path = write(tmp_path / f"x{suffix}", {"text": ROWS["text"], "label": labels})
    if {-1, -100} & set(labels):
        with pytest.warns(DataWarning, match="counts as no label"):
            data = open_data(path)
    else:
        data = open_data(path)
    assert data.labelled.tolist() == [bool(k) for k in labelled]
    assert data.class_names == names
    task = features(data, out=tmp_path / "f.parquet").task()
    assert np.asarray(task.labelled).tolist() == data.labelled.tolist()
    assert task.class_names == names


@pytest.mark.parametrize("value", [None, "", " "])
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_data_without_any_label_are_unlabelled_with_a_note(tmp_path, suffix, value):
    path = write(tmp_path / f"x{suffix}", {**ROWS, "label": [value] * 4})
    with pytest.warns(DataWarning, match="none of the 4 items of 'x' has a label"):
        data = open_data(path)
    assert (data.labels, data.labelled, data.class_names) == (None, None, None)


def test_items_left_without_labels_by_skipping(tmp_path):
    path = write(tmp_path / "x.parquet", {"text": [" ", "a"], "label": ["x", None]})
    data = open_data(path)
    with pytest.warns(DataWarning, match="none of the 1 items"):
        assert features(data, on_error="skip").labels is None


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".safetensors", ".parquet"])
def test_every_format_keeps_which_items_are_labelled(tmp_path, suffix):
    columns = {**ROWS, "label": ["x", None, "y", "x"], "author": [1, 1, 2, 3]}
    data = open_data(write(tmp_path / "x.jsonl", columns), group_column="author")
    path = save_features(tmp_path / f"f{suffix}", features(data))
    task = load_features(path).task()
    assert np.asarray(task.labelled).tolist() == [True, False, True, True]
    assert np.asarray(task.groups).tolist() == [0, 0, 1, 2]


def test_class_names_of_a_filtered_set_are_left_out_with_a_note(tmp_path):
    names = {"info": {"features": {"label": {"names": ["cat", "dog", "emu"]}}}}
    stored = pa.table({"text": ["a", "b"], "label": [2, 0]})
    stored = stored.replace_schema_metadata({"huggingface": json.dumps(names)})
    pq.write_table(stored, tmp_path / "x.parquet")
    with pytest.warns(DataWarning, match=r"no item of 1 of its 3 classes \(dog\)"):
        data = open_data(tmp_path / "x.parquet")
    assert (data.class_names, data.labels.tolist()) == (("cat", "emu"), [1, 0])
    assert features(data).class_names == ("cat", "emu")


# -- the command -----------------------------------------------------------------------


def run(*words):
    return main([str(word) for word in words])


def test_extract_tells_of_labels_and_groups(tmp_path, capsys):
    columns = {**NAMED, "label": ["é", None, "y", "é"], "text": ["a", "b", "", "c"]}
    path = write(tmp_path / "x.csv", columns, mark=";", encoding="latin-1")
    out = tmp_path / "f.npz"
    words = ["extract", "--data", path, "--encoder", "word-vectors", "--out", out]
    words += ["--separator", ";", "--encoding", "latin-1", "--no-cache"]
    words += ["--id-column", "key", "--group-column", "author", "--on-error", "skip"]
    if run(*words) == 2:  # the package of the encoder is not installed
        pytest.skip(capsys.readouterr().err)
    said = capsys.readouterr().out
    assert "3 items, 256 features, 1 classes, 1 items unlabelled, 3 groups" in said
    assert "row 2 (k2) has no text" in said
    assert run("info", out, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["labelled"], facts["groups"]) == (2, 3)


@pytest.mark.parametrize(
    "words",
    [
        ("--separator", ";"),
        ("--encoding", "latin-1"),
        ("--group-column", "author"),
    ],
)
def test_options_that_no_file_of_features_uses_are_refused(tmp_path, capsys, words):
    x = np.eye(4, dtype=np.float32)
    np.savez(tmp_path / "x.npz", features=x, labels=[0, 1, 0, 1])
    assert run("info", tmp_path / "x.npz", *words) == 2
    argument = words[0].strip("-").replace("-", "_")
    assert capsys.readouterr().err.startswith(f"tta-jax: {argument}: found")


def test_labels_and_groups_beside_an_npy(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(4, 3)))
    columns = {"label": ["é", "y", "é", "y"], "author": ["p", "q", "p", "r"]}
    path = write(tmp_path / "y.csv", columns, mark=";", encoding="latin-1")
    words = ("--separator", ";", "--encoding", "latin-1", "--group-column", "author")
    assert run("info", f"{tmp_path / 'x.npy'},{path}", *words, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["classes"], facts["groups"]) == ({"y": 2, "é": 2}, 3)
    lines = write(tmp_path / "y.jsonl", columns)
    task = load_features(f"{tmp_path / 'x.npy'},{lines}", group_column="author").task()
    assert np.asarray(task.groups).tolist() == [0, 1, 0, 2]
    with pytest.raises(ValueError, match=r"^separator: .*no table in text"):
        load_features(f"{tmp_path / 'x.npy'},{lines}", separator=";")


def test_groups_of_a_table_of_features(tmp_path):
    columns = {"features": np.eye(4).tolist(), "label": [0, 1, 0, 1]}
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({**columns, "author": ["p", "q", "p", "r"]}), path)
    with pytest.raises(ValueError, match=r"^group_column: .*no column 'writer'"):
        load_features(path, group_column="writer")
    task = load_features(path, group_column="author").task()
    assert np.asarray(task.groups).tolist() == [0, 1, 0, 2]
