"""`tta-jax data` and `tta-jax extract` as a user calls them. The encoder is a small one
of the test's own.
"""

import json

import numpy as np
import pytest
from PIL import Image

import tta_jax as tta
from tta_jax.cli import extract
from tta_jax.cli.main import main
from tta_jax.data import ENCODERS, Encoder, load_features
from tta_jax.data.registry import TASKS

HEAD = (np.eye(3, 2, dtype=np.float32), np.ones(3, np.float32))


@pytest.fixture(autouse=True)
def encoder(monkeypatch):
    """An encoder of pictures and one of texts, in place of those that packages hold."""

    def load(name, weights=None, **options):
        if weights is not None:
            raise ValueError(f"weights: {weights!r} holds another network")
        if name in ("colours", "headless"):

            def build():
                return ((lambda _, batch: batch.mean((1, 2))[:, :2]), ())

            def small(image):
                return np.asarray(image.resize((4, 4)), np.float32)

            def head():
                if name == "headless":
                    raise ValueError("head: it is no linear layer")
                return HEAD

            return Encoder(name, "image", small, build, identity="colours", head=head)
        if name == "lengths":

            def prepare(text):
                return (
                    np.array([len(text), text.count("a")], np.float32)
                    if text.strip()
                    else _no_text()
                )

            return Encoder(
                name,
                "text",
                prepare,
                lambda: ((lambda _, batch: batch), ()),
                identity="lengths",
            )
        raise ValueError(f"encoder: {name!r} is unknown")

    monkeypatch.setattr(extract, "load_encoder", load)


def _no_text():
    raise ValueError("has no text")


@pytest.fixture
def album(tmp_path):
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(5):
            colour = (40 * i, 100 * number, 7)
            Image.new("RGB", (6, 6), colour).save(tmp_path / "pets" / name / f"{i}.png")
    return tmp_path / "pets"


def run(*words):
    return main([str(word) for word in words])


def test_a_folder_becomes_features_that_analyze_reads(album, tmp_path, capsys):
    for suffix in (".npz", ".npy", ".safetensors", ".parquet"):
        out = tmp_path / f"x{suffix}"
        assert (
            run(
                "extract",
                "--data",
                album,
                "--encoder",
                "colours",
                "--out",
                out,
                "--head",
                tmp_path / "h.npz",
            )
            == 0
        )
        said = capsys.readouterr().out
        assert f"{out}: 10 items, 2 features, 2 classes" in said
        found = load_features(out)
        assert found.features[:, 1].tolist() == [0] * 5 + [100] * 5
        assert run("info", out) == 0
        assert "colours" in capsys.readouterr().out
    head = tta.SoftmaxHead(**np.load(tmp_path / "h.npz"))
    np.testing.assert_array_equal(head.weight, HEAD[0])
    assert run("info", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["provenance"]["encoder"] == "colours"


def test_a_head_that_cannot_be_had_is_found_out_first(album, tmp_path, capsys):
    out = tmp_path / "x.npz"
    words = ("--encoder", "headless", "--out", out, "--head", tmp_path / "h.npz")
    assert run("extract", "--data", album, *words) == 2
    assert "head: it is no linear layer" in capsys.readouterr().err
    assert not out.exists()


def test_a_table_and_a_random_part_of_it(tmp_path, capsys):
    lines = ["words,kind"] + [
        f"{'a' * i} b,{'even' if i % 2 == 0 else 'odd'}" for i in range(40)
    ]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    words = (
        "extract",
        "--data",
        tmp_path / "x.csv",
        "--encoder",
        "lengths",
        "--column",
        "words",
        "--label-column",
        "kind",
    )
    assert (
        run(*words, "--out", tmp_path / "x.npz", "--limit", 20, "--seed", 3, "--json")
        == 0
    )
    facts = json.loads(capsys.readouterr().out)
    assert (facts["items"], facts["features"], facts["classes"]) == (20, 2, 2)
    found = load_features(tmp_path / "x.npz")
    assert found.class_names is not None
    assert [found.class_names[k] for k in found.labels] == [
        "odd" if a % 2 else "even" for a in found.features[:, 1]
    ]


def test_errors_are_skipped_and_recorded(album, tmp_path, capsys):
    (album / "cat/2.png").write_bytes(b"no picture")
    words = (
        "extract",
        "--data",
        album,
        "--encoder",
        "colours",
        "--out",
        tmp_path / "x.npz",
    )
    assert run(*words) == 2
    assert not (tmp_path / "x.npz").exists()
    error = capsys.readouterr().err
    assert "cat/2.png" in error
    assert "--on-error skip" in error
    assert len(error.strip().splitlines()) == 1
    assert run(*words, "--on-error", "skip") == 0
    assert "cat/2.png is not a readable picture" in capsys.readouterr().out
    assert (
        load_features(tmp_path / "x.npz").provenance["skipped"][0]["what"]
        == "cat/2.png"
    )


def test_a_class_without_pictures(album, tmp_path, capsys):
    (album / "emu").mkdir()
    words = (
        "extract",
        "--data",
        album,
        "--encoder",
        "colours",
        "--out",
        tmp_path / "x.npz",
    )
    assert run(*words) == 2
    assert "class 'emu' of 'pets' has no sample" in capsys.readouterr().err
    assert run(*words, "--on-error", "skip") == 0
    assert "left out 1 classes without a sample: emu" in capsys.readouterr().out


def test_interrupted(album, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(extract, "extract_features", interrupted)
    words = (
        "extract",
        "--data",
        album,
        "--encoder",
        "colours",
        "--out",
        tmp_path / "x.npz",
    )
    for more, says in (
        ((), "goes on from there"),
        (("--no-cache",), "nothing was kept"),
    ):
        assert run(*words, *more) == 1
        assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--out", "x.txt"], "out: "),
        (["--out", "x.npz", "--head", "h.txt"], "head: "),
        (["--out", "x.npz", "--head", "x.npz"], "head: "),
        (["--out", "x.npy", "--head", "x.meta.npz"], "head: "),
        (["--out", "x.npz", "--encoder", "none"], "encoder: "),
        (["--out", "x.npz", "--data", "absent"], "data: "),
        (["--out", "x.npz", "--data", "absent.csv"], "no file"),
        (["--out", "x.npz", "--split", "train"], "split: "),
        (["--out", "x.npz", "--limit", "0"], "limit: "),
        (["--out", "x.npz", "--batch-size", "-3"], "batch_size: "),
        (["--out", "x.npz", "--encoder", "lengths"], "takes text items"),
        (["--out", "x.npz", "--encoder", "lengths", "--head", "h.npz"], "head: "),
        (["--out", "x.npz", "--weights", "w"], "weights: "),
        (["--out", "x.npz", "--column", "text"], "column: "),
        ([], "--out"),
    ],
)
def test_wrong_calls_are_one_line_and_status_2(
    album, tmp_path, monkeypatch, capsys, words, says
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    given = ["extract", "--data", str(album), "--encoder", "colours", *words]
    assert run(*given) == 2
    error = capsys.readouterr().err.strip()
    assert says in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.glob("x.*"))


def test_tasks_and_encoders_are_listed(tmp_path, capsys):
    assert run("data", "list", "--data-dir", tmp_path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["tasks"]] == list(TASKS)
    assert [row["encoder"] for row in found["encoders"]] == list(ENCODERS)
    assert all(row["licence"] for row in found["tasks"] + found["encoders"])
    assert run("data", "list", "--data-dir", tmp_path) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in (*TASKS, *ENCODERS))
    assert run("data") == 2
    assert run("data", "prepare", "nothing", "--data-dir", tmp_path) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_a_task_is_prepared_listed_and_extracted(tmp_path, capsys):
    place = ("--data-dir", tmp_path / "tfds")
    words = (
        "extract",
        "--data",
        "digits",
        "--encoder",
        "colours",
        "--split",
        "train[:300]",
        "--out",
        tmp_path / "x.npz",
        *place,
    )
    assert run(*words) == 2
    assert "tta-jax data prepare digits" in capsys.readouterr().err
    for _ in range(2):
        assert run("data", "prepare", "digits", *place) == 0
    assert run(*words) == 0
    found = load_features(tmp_path / "x.npz")
    assert found.class_names is not None
    assert (len(found), len(found.class_names)) == (300, 10)
    assert found.provenance["split"] == "train[:300]"
    capsys.readouterr()
    assert run("data", "list", *place, "--json") == 0
    [row] = [
        row
        for row in json.loads(capsys.readouterr().out)["tasks"]
        if row["name"] == "digits"
    ]
    assert row["prepared"] == "yes"


def test_the_data_are_not_overwritten(tmp_path, capsys):
    from tta_jax.data import Features, save_features

    path = save_features(
        tmp_path / "own.parquet", Features(np.ones((2, 2), np.float32))
    )
    whole = path.read_bytes()
    assert run("extract", "--data", path, "--encoder", "lengths", "--out", path) == 2
    assert "is the data" in capsys.readouterr().err
    assert path.read_bytes() == whole


def test_help_teaches(capsys):
    for words in (
        ("extract", "--help"),
        ("data", "--help"),
        ("data", "prepare", "--help"),
    ):
        assert run(*words) == 0
    said = capsys.readouterr().out
    assert "examples:" in said
    assert "--on-error" in said
