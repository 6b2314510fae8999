"""Data sets of Hugging Face: folders that `save_to_disk` wrote, read without
`datasets`, and names of the hub, read through it.
"""

import json
import subprocess
import sys
from importlib import metadata

import numpy as np
import pyarrow as pa
import pytest

from tta_jax._internal.warning import DataWarning
from tta_jax.data import hub, open_data
from tta_jax.data.registry import TASKS

TEXTS = ["a", "bb", "ccc", "dddd", "eeeee"]
LABELS = [0, 1, 0, -1, 1]
FEATURES = {
    "text": {"dtype": "string", "_type": "Value"},
    "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
}


def save(folder, columns=None, shards=2, features=None, **state):
    """A folder as `save_to_disk` writes it: shards in Arrow's stream format."""
    folder.mkdir(parents=True)
    stored = pa.table(columns or {"text": TEXTS, "label": LABELS})
    step = -(-len(stored) // shards)
    names = [f"data-{k:05d}-of-{shards:05d}.arrow" for k in range(shards)]
    for k, name in enumerate(names):
        with pa.ipc.new_stream(folder / name, stored.schema) as sink:
            sink.write_table(stored.slice(k * step, step))
    files = [{"filename": name} for name in names]
    said = {"_data_files": files, "_split": None, "_fingerprint": "0"} | state
    (folder / "state.json").write_text(json.dumps(said))
    info = {"features": FEATURES if features is None else features, "citation": ""}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def save_dict(folder, **parts):
    for name, columns in parts.items():
        save(folder / name, columns)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(parts)}))
    return folder


# -- folders ---------------------------------------------------------------------------


def test_a_saved_data_set(tmp_path):
    folder = save(tmp_path / "pets")
    with pytest.warns(DataWarning, match="is -1 in 1 rows"):
        found = open_data(folder)
    assert list(found.items) == TEXTS
    assert (found.class_names, found.name) == (("cat", "dog"), "pets")
    assert found.labels.tolist() == [0, 1, 0, 0, 1]
    assert found.labelled.tolist() == [True, True, True, False, True]
    assert found.describe(3) == "row 0 of data-00001-of-00002.arrow"


def test_splits_of_a_saved_dictionary(tmp_path):
    one = {"text": ["x", "y"], "label": [1, 0]}
    folder = save_dict(tmp_path / "pets", train=one, test={"text": ["z"], "label": [1]})
    assert list(open_data(folder, "train").items) == ["x", "y"]
    with pytest.warns(DataWarning, match=r"no item of 1 of its 2 classes \(cat\)"):
        found = open_data(folder, "test")
    assert (found.split, found.class_names, found.labels.tolist()) == (
        "test",
        ("dog",),
        [0],
    )
    with pytest.raises(ValueError, match=r"^split: .*name one: train, test$"):
        open_data(folder)
    with pytest.raises(ValueError, match=r"^split: .*has no 'val'; it has train, test"):
        open_data(folder, "val")
    alone = save_dict(tmp_path / "alone", train=one)
    assert open_data(alone).split == "train"


def test_the_split_of_a_saved_data_set(tmp_path):
    columns = {"text": TEXTS, "label": [0, 1, 0, 1, 1]}
    folder = save(tmp_path / "a", columns, _split="train")
    assert len(open_data(folder, "train")) == 5
    with pytest.raises(ValueError, match=r"^split: .*no column 'split'"):
        open_data(folder, "test")
    more = {**columns, "split": ["train", "test", "test", "train", "train"]}
    assert len(open_data(save(tmp_path / "b", more), "test")) == 2


def test_pictures_of_a_saved_data_set(tmp_path):
    picture = tmp_path / "1.png"
    picture.write_bytes(b"of a file")
    pictures = [
        {"bytes": b"one", "path": "one.png"},
        {"bytes": None, "path": str(picture)},
        {"bytes": None, "path": "relative.png"},
    ]
    columns = {"image": pictures, "label": [0, 1, 1]}
    found = open_data(
        save(tmp_path / "a", columns, features=FEATURES | {"image": {"_type": "Image"}})
    )
    assert (found.modality, list(found.items)) == ("image", [b"one", picture, b""])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: (f / "state.json").write_text("{"), "state.json' is absent or dam"),
        (lambda f: (f / "state.json").write_text("[]"), "state.json' is absent or dam"),
        (lambda f: (f / "state.json").write_text("{}"), "state.json' is absent or dam"),
        (lambda f: state(f, _data_files=[]), "names no files"),
        (lambda f: state(f, _data_files=["x.arrow"]), "names no files"),
        (lambda f: state(f, _data_files=[{"filename": "../x.arrow"}]), "names no file"),
        (
            lambda f: state(f, _indices_data_files=[{"filename": "i.arrow"}]),
            "file of indices.*flatten_indices",
        ),
        (lambda f: state(f, _indices_files=["i.arrow"]), "file of indices"),
        (lambda f: (f / "data-00001-of-00002.arrow").unlink(), "no file .*00001-of"),
        (
            lambda f: (f / "data-00001-of-00002.arrow").write_bytes(b"x"),
            "00001-of.*dam",
        ),
        (lambda f: (f / "dataset_info.json").unlink(), "dataset_info.json' is absent"),
        (
            lambda f: (f / "dataset_info.json").write_text("3"),
            "dataset_info.json' is a",
        ),
    ],
)
def test_what_is_wrong_with_a_saved_folder_is_named(tmp_path, change, says):
    folder = save(tmp_path / "pets")
    change(folder)
    with pytest.raises(ValueError, match=rf"^data: .*{says}") as error:
        open_data(folder)
    assert "\n" not in str(error.value)


def state(folder, **more):
    said = json.loads((folder / "state.json").read_text()) | more
    (folder / "state.json").write_text(json.dumps(said))


def test_a_saved_dictionary_without_a_part(tmp_path):
    one = {"text": ["x", "y"], "label": [1, 0]}
    folder = save_dict(tmp_path / "pets", train=one)
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(ValueError, match=r"^data: .*names the split 'test', but .*not"):
        open_data(folder, "test")
    (folder / "dataset_dict.json").write_text('{"splits": []}')
    with pytest.raises(ValueError, match=r"^split: .*it has none"):
        open_data(folder)


def test_a_cache_of_datasets_is_no_data_set_of_tfds(tmp_path):
    folder = save(tmp_path / "pets")
    (folder / "state.json").unlink()
    with pytest.raises(ValueError, match=r"^data: .*no state.json.*save_to_disk"):
        open_data(folder)


def test_local_folders_do_without_datasets(tmp_path):
    columns = {"text": TEXTS, "label": [0, 1, 0, 1, 1]}
    save(tmp_path / "pets", columns)
    code = (
        "import sys; from tta_jax.data import open_data; "
        f"assert len(list(open_data({str(tmp_path / 'pets')!r}).items)) == 5; "
        "print(sorted({m.split('.')[0] for m in sys.modules}))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert "'pyarrow'" in out
    assert not {"datasets", "huggingface_hub", "tensorflow_datasets"} & set(
        out.replace("'", "").strip("[]\n").split(", ")
    )


def test_the_same_folder_as_datasets_reads_it(tmp_path):
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["cat", "dog", "emu"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    rng = np.random.default_rng(0)
    columns = {
        "text": [f"t{i}" for i in range(50)],
        "label": rng.integers(0, 3, 50).tolist(),
    }
    whole = datasets.Dataset.from_dict(columns, features=features)
    whole.save_to_disk(tmp_path / "whole", num_shards=3)
    part = whole.shuffle(seed=0).filter(lambda row: row["label"] != 1)
    part.save_to_disk(tmp_path / "part")
    datasets.DatasetDict(train=whole, test=part).save_to_disk(tmp_path / "dict")
    for folder, split in (("whole", None), ("dict", "train")):
        found = open_data(tmp_path / folder, split)
        theirs = datasets.load_from_disk(tmp_path / folder)
        theirs = theirs if split is None else theirs[split]
        assert list(found.items) == theirs["text"][:]
        assert found.labels.tolist() == theirs["label"][:]
        assert found.class_names == tuple(theirs.features["label"].names)
    for folder, split in (("part", None), ("dict", "test")):
        with pytest.warns(DataWarning, match=r"\(dog\)"):
            found = open_data(tmp_path / folder, split)
        assert list(found.items) == part["text"][:]
        mine = np.array(found.class_names)[found.labels]
        assert mine.tolist() == [names.names[k] for k in part["label"]]


# -- the hub ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hf:", "give hf:OWNER/NAME"),
        ("hf:a/b/c", "did you mean 'hf:a/b#c'"),
        ("hf:a/b/c/d", "with a configuration$"),
        ("hf:a/b#", "give hf:OWNER/NAME"),
        ("hf:a/b#c#d", "give hf:OWNER/NAME"),
        ("hf:/a", "give hf:OWNER/NAME"),
        ("hf:a b", "give hf:OWNER/NAME"),
    ],
)
def test_names_that_are_none_of_the_hub(name, says):
    with pytest.raises(ValueError, match=rf"^data: found {name!r}; .*{says}"):
        open_data(name)


def without_datasets(name):
    if name == "datasets":
        raise metadata.PackageNotFoundError(name)
    return metadata.version(name)


def test_what_the_hub_needs_is_named(monkeypatch):
    monkeypatch.setattr(hub, "version", without_datasets)
    with pytest.raises(ValueError, match=r"not installed; .*pip install 'tta-jax\[hub"):
        open_data("hf:dair-ai/emotion")
    monkeypatch.setattr(hub, "version", lambda name: "3.6.0")
    with pytest.raises(ValueError, match=r"needs datasets 4 or newer, which runs no c"):
        open_data("hf:dair-ai/emotion")


def test_what_lies_here_is_not_taken_for_the_hub(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^data: 'photos' is a file or folder here"):
        open_data("hf:photos")


@pytest.mark.parametrize("option", ["separator", "encoding"])
def test_options_that_the_hub_has_no_use_for(option):
    with pytest.raises(ValueError, match=rf"^{option}: found"):
        open_data("hf:a/b", **{option: ";"})


@pytest.mark.parametrize(
    "option", ["column", "label_column", "id_column", "group_column"]
)
def test_columns_of_tasks_are_known(option):
    name = next(iter(TASKS))
    with pytest.raises(ValueError, match=rf"^{option}: .*is a task"):
        open_data(name, **{option: "x"})


def test_the_hub_cannot_be_reached(monkeypatch):
    datasets = pytest.importorskip("datasets")
    errors = pytest.importorskip("datasets.exceptions")

    def fails(error):
        def builder(*_):
            raise error

        monkeypatch.setattr(datasets, "load_dataset_builder", builder)

    for error, says in (
        (ConnectionError("no route"), "cannot be reached.*save_to_disk wrote, or Parq"),
        (errors.DatasetNotFoundError("gone"), "does not show 'hf:a/b'"),
        (RuntimeError("Dataset scripts are no longer supported"), "code of its own"),
        (ValueError("Config name is missing\nPick one"), "cannot be opened .*Pick one"),
        (OSError("disk"), "cannot be opened"),
    ):
        fails(error)
        with pytest.raises(ValueError, match=rf"^data: .*{says}") as told:
            open_data("hf:a/b")
        assert "\n" not in str(told.value)


def test_a_data_set_of_the_hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    columns = {"text": TEXTS, "label": [0, 1, 0, 1, 1]}
    stored = datasets.Dataset.from_dict(columns, features=features)
    files = {}
    for split in ("train", "test"):
        files[split] = str(tmp_path / f"{split}.parquet")
        stored.to_parquet(files[split])
    real = datasets.load_dataset_builder

    def of_the_hub(repository, config=None):
        made = real("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
        made.repo_id = repository
        return made

    with pytest.raises(ValueError, match=r"^data: 'hf:csv' is a format of datasets"):
        open_data("hf:csv")
    monkeypatch.setattr(datasets, "load_dataset_builder", of_the_hub)
    found = open_data("hf:owner/pets", "test")
    assert (list(found.items), found.class_names) == (TEXTS, ("cat", "dog"))
    assert found.labels.tolist() == columns["label"]
    assert (found.name, found.split) == ("pets", "test")
    assert found.provenance["data_set"] == "owner/pets"
    json.dumps(found.provenance)
    assert list(open_data("hf:owner/pets", "train[1:3]").items) == TEXTS[1:3]
    with pytest.raises(ValueError, match=r"^split: name a split .*train \(5\), test"):
        open_data("hf:owner/pets")
    with pytest.raises(ValueError, match=r"^split: .*has no 'val' .*train \(5\)"):
        open_data("hf:owner/pets", "val")
