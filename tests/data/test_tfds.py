"""Prepared TFDS data sets by name or folder, without TensorFlow; what is wrong with
them is named in one line.
"""

import io
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from tta_jax._internal.warning import DataWarning
from tta_jax.data import extract_features, open_data
from tta_jax.data import tfds as tfds_reader
from tta_jax.data.extraction.adapters import as_encoder
from tta_jax.data.records import Columns
from tta_jax.data.tfds import open_folder, open_tfds

tfds = pytest.importorskip(
    "tensorflow_datasets", reason="install it with: pip install 'tta-jax[data]'"
)

SPLITS = {"train": 20, "test": 5, "unsupervised": 4, "mixed": 4}


def png(value):
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 3, 3), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def value_of(item):
    return int(np.asarray(Image.open(io.BytesIO(item)))[0, 0, 0])


# `importorskip` leaves the base without a type, and pyright then knows no keywords.
class TtaTinyPets(  # pyright: ignore[reportGeneralTypeIssues]
    tfds.core.GeneratorBasedBuilder,
    skip_registration=True,  # pyright: ignore[reportCallIssue]
):
    """Pictures of one colour, and texts."""

    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(4, 3, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            "note": tfds.features.Text(),
            "number": np.int64,
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            license="CC0",
            homepage="https://example.org",
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split):
        for i in range(SPLITS[split]):
            unknown = split == "unsupervised" or (split == "mixed" and i == 0)
            yield (
                i,
                {
                    "image": png(i),
                    "label": -1 if unknown else i % 2,
                    "note": f"grün {i}",
                    "number": i % 3,
                },
            )


class TtaTinyVague(  # pyright: ignore[reportGeneralTypeIssues]
    TtaTinyPets,
    skip_registration=True,  # pyright: ignore[reportCallIssue]
):
    """Features whose roles nobody says."""

    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name="one"),
        tfds.core.BuilderConfig(name="two"),
    ]

    def _info(self):
        features = {
            "left": tfds.features.Text(),
            "right": tfds.features.Text(),
            "kind": tfds.features.ClassLabel(num_classes=2),
            "mood": tfds.features.ClassLabel(num_classes=3),
            "vector": tfds.features.Tensor(shape=(2,), dtype=np.float32),
            "tags": tfds.features.Sequence(tfds.features.Text()),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples("train")}

    def _generate_examples(self, split):
        for i in range(6):
            vector = np.array([i, -i], np.float32)
            yield (
                i,
                {
                    "left": f"l{i}",
                    "right": "r",
                    "kind": i % 2,
                    "mood": i % 3,
                    "vector": vector,
                    "tags": ["x"],
                },
            )


def prepared(cls, home, file_format, **more):
    builder = cls(data_dir=home, file_format=file_format, **more)
    tfds.disable_progress_bar()
    builder.download_and_prepare()
    return builder


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """Data directories by file format."""
    found = {}
    for file_format in ("array_record", "parquet"):
        found[file_format] = tmp_path_factory.mktemp(file_format)
        prepared(TtaTinyPets, found[file_format], file_format)
    prepared(TtaTinyVague, found["array_record"], "array_record", config="one")
    prepared(TtaTinyVague, found["array_record"], "array_record", config="two")
    return found


@pytest.fixture
def home(homes, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(homes["array_record"]))
    return homes["array_record"]


@pytest.mark.parametrize("file_format", ["array_record", "parquet"])
def test_pictures_stay_encoded(homes, file_format):
    found = open_tfds("tta_tiny_pets", "train", homes[file_format])
    assert (len(found), found.modality, found.class_names, found.name) == (
        20,
        "image",
        ("cat", "dog"),
        "tta_tiny_pets",
    )
    values = [np.asarray(Image.open(io.BytesIO(item)))[0, 0, 0] for item in found.items]
    assert sorted(values) == list(range(20))
    assert values != list(range(20))  # TFDS writes shuffled
    assert [found.items[i] for i in range(20)] == [
        png(value) for value in values
    ]  # byte for byte
    assert found.labels.tolist() == [value % 2 for value in values]
    assert found.provenance["licence"] == "CC0"
    json.dumps(found.provenance)
    with pytest.raises(IndexError):
        found.items[20]
    assert "tensorflow" not in sys.modules


def test_by_name_version_and_folder(home):
    same = [
        open_tfds("tta_tiny_pets", "test"),
        open_tfds("tta_tiny_pets:1.2.0", "test"),
        open_tfds(home / "tta_tiny_pets" / "1.2.0", "test"),
        open_data("tta_tiny_pets", "test"),
        open_data(str(home / "tta_tiny_pets" / "1.2.0"), "test"),
    ]
    assert len({tuple(found.items) for found in same}) == 1
    assert (
        len(open_tfds("tta_tiny_vague/two", column="left", label_column="kind")) == 6
    )  # it has one split


@pytest.mark.parametrize(
    ("split", "count"),
    [
        ("train[:5]", 5),
        ("train[10%:20%]", 2),
        ("train[-3:]", 3),
        ("train+test", 25),
        ("train[:2]+test[:1]", 3),
    ],
)
def test_parts_of_splits(home, split, count):
    found = open_tfds("tta_tiny_pets", split)
    assert (len(found), found.split, found.labels.shape) == (count, split, (count,))
    everything = [
        *open_tfds("tta_tiny_pets", "train").items,
        *open_tfds("tta_tiny_pets", "test").items,
    ]
    assert set(found.items) <= set(everything)


def test_threads_read_what_one_reads(home):
    found = open_tfds("tta_tiny_pets", "train")
    once = list(found.items)
    with ThreadPoolExecutor(8) as pool:
        assert (
            list(pool.map(found.items.__getitem__, list(range(20)) * 25)) == once * 25
        )


def test_features_of_a_data_set(home):
    made = as_encoder(lambda batch: batch[:, 0, 0].astype("float32"), "image")
    found = extract_features(made, open_data("tta_tiny_pets", "train"), cache=False)
    assert sorted(found.features[:, 0].tolist()) == list(range(20))
    assert (found.features[:, 0] % 2 == found.labels).all()


def test_which_feature_is_what(home):
    texts = open_tfds("tta_tiny_pets", "test", column="note", label_column="number")
    assert (texts.modality, texts.class_names) == ("text", ("0", "1", "2"))
    assert [
        int(text.removeprefix("grün ")) % 3 for text in texts.items
    ] == texts.labels.tolist()
    named = open_tfds("tta_tiny_pets", "test", column="image", label_column="note")
    assert named.class_names == tuple(f"grün {i}" for i in range(5))
    assert sorted(named.labels.tolist()) == list(range(5))
    arrays = open_tfds("tta_tiny_vague/one", column="vector", label_column="mood")
    assert arrays.modality == "array"
    assert (np.stack(list(arrays.items))[:, 0] % 3 == arrays.labels).all()


@pytest.mark.parametrize(
    ("name", "asked", "says"),
    [
        (
            "tta_tiny_pets",
            {"column": "picture"},
            r"^column: .*no feature 'picture'; it has image \(Image\), .*note \(Text",
        ),
        (
            "tta_tiny_pets",
            {"label_column": "y"},
            r"^label_column: .*no feature 'y'; it has image \(Image\)",
        ),
        (
            "tta_tiny_pets",
            {"column": "number"},
            r"^column: feature 'number' .*no picture, text or array",
        ),
        (
            "tta_tiny_pets",
            {"label_column": "image"},
            r"^label_column: feature 'image' .*holds no classes",
        ),
        (
            "tta_tiny_vague/one",
            {"label_column": "kind"},
            r"^column: name the feature of tta_tiny_vague/one/1.2.0 that is",
        ),
        (
            "tta_tiny_vague/one",
            {"column": "left"},
            r"^label_column: name the feature .*it has .*kind \(ClassLabel\)",
        ),
        (
            "tta_tiny_vague/one",
            {"column": "tags"},
            r"^column: feature 'tags' .*no picture",
        ),
    ],
)
def test_features_that_do_not_do(home, name, asked, says):
    with pytest.raises(ValueError, match=says) as error:
        open_tfds(name, "train", **asked)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("asked", [None, "label"])
def test_unlabelled_items(home, asked):
    with pytest.warns(DataWarning, match="none of the 4 items"):
        found = open_tfds("tta_tiny_pets", "unsupervised", label_column=asked)
    assert (len(found), found.labels, found.class_names) == (4, None, None)
    mixed = open_tfds("tta_tiny_pets", "mixed", label_column=asked)
    numbers = [value_of(item) for item in mixed.items]
    assert mixed.labelled.tolist() == [number > 0 for number in numbers]
    assert mixed.labels.tolist() == [number % 2 for number in numbers]
    assert mixed.class_names == ("cat", "dog")


def test_ids_and_groups(home):
    found = open_tfds("tta_tiny_pets", "test", id_column="note", group_column="number")
    numbers = [value_of(item) for item in found.items]
    assert found.describe(0) == f"item 0 of test (grün {numbers[0]})"
    same = np.array(numbers) % 3
    assert ((found.groups[:, None] == found.groups) == (same[:, None] == same)).all()
    with pytest.raises(ValueError, match=r"^id_column: .*no feature 'name'; it has"):
        open_tfds("tta_tiny_pets", "test", id_column="name")
    with pytest.raises(ValueError, match=r"^group_column: feature 'image' .* is Image"):
        open_tfds("tta_tiny_pets", "test", group_column="image")
    with pytest.warns(DataWarning, match=r"id_column: .* ids that were there before"):
        open_tfds("tta_tiny_pets", "test", id_column="number")


def test_splits_that_are_not_there(home):
    with pytest.raises(
        ValueError,
        match=r"^split: name a split of tta_tiny_pets/1.2.0; it has .*train \(20\)",
    ):
        open_tfds("tta_tiny_pets")
    for wrong in ("val", "train+val", "train[:21]", "train[", "train[:x]"):
        with pytest.raises(
            ValueError, match=r"^split: .* it has .*train \(20\).*, and parts"
        ) as error:
            open_tfds("tta_tiny_pets", wrong)
        assert "\n" not in str(error.value)
    for nothing in ("train[3:3]", "train[90%:10%]"):
        with pytest.raises(ValueError, match=r"^split: .*holds no item"):
            open_tfds("tta_tiny_pets", nothing)


def test_names_that_are_not_there(home, tmp_path):
    for name, says in (
        (
            "mnist",
            (
                r"^data: 'mnist' is not prepared in .*builder\('mnist', "
                r".*file_format='array_record'\).download_and_p"
            ),
        ),
        ("mnits", r"^data: there is no .*'mnits'; did you mean 'mnist'\?$"),
        ("xyzzyx", r"^data: there is no file, task or TFDS data set 'xyzzyx'; give"),
        ("tta_tiny_pets:9.9.9", r"^data: .*which has tta_tiny_pets with 1.2.0; name"),
        (
            "tta_tiny_vague/three",
            r"^data: .*which has tta_tiny_vague with one, two; name",
        ),
    ):
        with pytest.raises(ValueError, match=says) as error:
            open_tfds(name, "train")
        assert "\n" not in str(error.value)
    (tmp_path / "dataset_info.json").write_text("{}")
    for folder in (tmp_path, tmp_path / "tta_tiny_pets"):
        folder.mkdir(exist_ok=True)
        with pytest.raises(
            ValueError, match=r"^data: .*holds no prepared TFDS data set"
        ) as error:
            open_tfds(folder, "train")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", ["tensorflow_datasets", "importlib_resources"])
def test_libraries_that_are_not_there(home, monkeypatch, missing):
    monkeypatch.setattr(
        tfds_reader, "find_spec", lambda name: None if name == missing else object()
    )
    with pytest.raises(
        ValueError,
        match=rf"^data: .*package {missing}, .*not installed; .*'tta-jax\[data\]'$",
    ):
        open_tfds("tta_tiny_pets", "train")


def copy(home, target):
    shutil.copytree(home / "tta_tiny_pets" / "1.2.0", target)
    return target


def test_a_damaged_data_set(home, tmp_path):
    folder = copy(home, tmp_path / "x")
    (stored,) = folder.glob("*train*")
    stored.write_bytes(stored.read_bytes()[:700])
    with pytest.raises(
        ValueError, match=r"^data: cannot read tta_tiny_pets/1.2.0 .*prepare it anew$"
    ) as error:
        open_folder(folder, "train")
    assert "\n" not in str(error.value)
    stored.unlink()
    with pytest.raises(ValueError, match=r"^data: cannot read .*prepare it anew$"):
        open_folder(folder, "train")


@pytest.fixture
def tfrecord(home, tmp_path):
    """A folder that says it holds tfrecords."""
    folder = copy(home, tmp_path / "tfrecord")
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    return folder


def test_a_tfrecord_without_tensorflow(tfrecord, monkeypatch):
    monkeypatch.setattr(
        tfds_reader,
        "find_spec",
        lambda name: None if name == "tensorflow" else object(),
    )
    says = (
        r"^data: .*prepared as tfrecord, .*: tfds convert_format "
        r"--dataset_version_dir=.* --out_file_format=array_record$"
    )
    with pytest.raises(ValueError, match=says):
        open_folder(tfrecord, "train")


def test_a_tfrecord_with_tensorflow(home, tfrecord, monkeypatch):
    real, fake, starts = (
        tfds.builder_from_directory(home / "tta_tiny_pets" / "1.2.0"),
        tfds.builder_from_directory(tfrecord),
        [],
    )

    def as_dataset(split, decoders, shuffle_files):
        assert not shuffle_files
        starts.append(split)
        return SimpleNamespace(
            as_numpy_iterator=lambda: real.as_data_source(split, decoders=decoders)
        )

    fake.as_dataset = as_dataset
    monkeypatch.setattr(tfds, "builder_from_directory", lambda folder: fake)
    monkeypatch.setattr(tfds_reader, "find_spec", lambda name: object())
    monkeypatch.setattr(tfds_reader._FrontToBack, "_HELD", 2)
    expected, found = (
        open_folder_of(real, "train[:7]"),
        open_folder(tfrecord, "train[:7]"),
    )
    assert found.labels.tolist() == expected.labels.tolist()
    starts.clear()
    assert list(found.items) == list(expected.items)
    assert [found.items[i] for i in (6, 2, 2, 5)] == [
        expected.items[i] for i in (6, 2, 2, 5)
    ]
    assert (
        len(starts) == 2
    )  # after the pass for the labels, and for the step back from 6 to 2
    monkeypatch.undo()
    monkeypatch.setattr(tfds, "builder_from_directory", lambda folder: fake)
    monkeypatch.setattr(tfds_reader, "find_spec", lambda name: object())
    found = open_folder(tfrecord, "train[:7]")
    starts.clear()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(found.items.__getitem__, [1, 0, 2, 4, 3, 6, 5])) == [
            expected.items[i] for i in (1, 0, 2, 4, 3, 6, 5)
        ]
    assert not starts  # what threads ask for out of step is still held


def open_folder_of(builder, split):
    return tfds_reader._examples(builder, split, Columns())


# -- hostile files ---------------------------------------------------------------------


@pytest.mark.parametrize("by", ["name", "folder"])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "named",
    [
        "tta_hostile_module.Feature",
        "os.path",
        "tensorflow_datasets.core.features/../x.Y",
        "tensorflow_datasets.core.features..evil.Y",
        "antigravity.Joke",
        "Feature",
    ],
)
def test_a_file_of_features_imports_no_module(
    home, tmp_path, monkeypatch, named, legacy, by
):
    code = tmp_path / "code"
    code.mkdir()
    ran = tmp_path / "ran"
    (code / "tta_hostile_module.py").write_text(f"open({str(ran)!r}, 'w').close()")
    monkeypatch.syspath_prepend(str(code))
    data = tmp_path / "data"
    folder = copy(home, data / "tta_tiny_pets" / "1.2.0")
    features = folder / "features.json"
    if legacy:
        features.write_text(json.dumps({"type": named, "content": {}}))
    else:
        said = json.loads(features.read_text())
        said["pythonClassName"] = named
        features.write_text(json.dumps(said))
    before = set(sys.modules)
    where, home = ("tta_tiny_pets", data) if by == "name" else (folder, None)
    with pytest.raises(ValueError, match=r"^data: .*no feature of TFDS"):
        open_tfds(where, "train", home)
    assert not ran.exists()
    assert "tta_hostile_module" not in sys.modules
    assert "antigravity" not in set(sys.modules) - before


def test_features_of_ones_own_work_again_afterwards(home):
    connector = tfds.features.FeatureConnector
    before = connector.__dict__["cls_from_name"]
    open_tfds("tta_tiny_pets", "train", home)
    assert connector.__dict__["cls_from_name"] is before
