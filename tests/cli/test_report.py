"""`tta-jax report` as a user runs it."""

import json

import numpy as np
import pytest

import tta_jax as tta
from tta_jax.cli.main import main


def run(*words):
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    tasks = []
    for name, n in (("source", 120), ("target", 90)):
        labels = np.arange(n) % 3
        features = (rng.normal(size=(n, 6)) + 3 * np.eye(6)[labels]).astype(np.float32)
        np.savez(
            where / f"{name}.npz",
            features=features,
            labels=labels,
            class_names=["ant", "bee", "<b>cat</b>"],
        )
        tasks.append(tta.data.load_features(where / f"{name}.npz").task())
    config = tta.Config(bootstrap=10, sinkhorn_iterations=50)
    (where / "one").mkdir()
    tta.analyze(tasks[0], None, tasks[1], config).save(where / "one" / "analysis.tta")
    (where / "cut").mkdir()
    whole = (where / "one" / "analysis.tta").read_bytes()
    (where / "cut" / "cut.tta").write_bytes(whole[:700])
    (where / "cut" / "whole.tta").write_bytes(whole)
    (where / "empty").mkdir()
    return where


def test_a_page_beside_what_it_is_about(folder, capsys):
    assert run("report", folder / "one") == 0
    assert run("report", folder / "one" / "analysis.tta") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(
        f"{folder / 'one' / 'report.html'}: 4 figures and 8 tables in one file of 0."
    )
    pages = [
        (folder / "one" / name).read_bytes()
        for name in ("report.html", "analysis.html")
    ]
    assert pages[0] == pages[1]
    assert b"&lt;b&gt;cat&lt;/b&gt;" in pages[0]
    assert b"<b>cat" not in pages[0]


def test_features_give_their_figures(folder, tmp_path, capsys):
    out = tmp_path / "deep" / "page.html"
    words = [
        "report",
        folder / "one",
        "--source",
        folder / "source.npz",
        "--target",
        folder / "target.npz",
    ]
    assert run(*words, "--title", "A & B", "--out", out, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == {
        "out": str(out),
        "bytes": out.stat().st_size,
        "kind": "analysis",
        "title": "A & B",
        "figures": 7,
        "tables": 8,
        "left_out": {},
    }
    assert "<title>A &amp; B</title>" in out.read_text()


def test_a_folder_with_a_damaged_file_is_reported_and_says_so(folder, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert run("report", folder / "cut", "--out", out, "--json") == 0
    printed, error = capsys.readouterr()
    assert set(json.loads(printed)["left_out"]) == {"cut.tta"}
    assert error.startswith("tta-jax: left out: cut.tta: ")
    assert error.count("\n") == 1
    assert "cut.tta" in out.read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{f}/none"], "path: there is no file or folder"),
        (
            ["{f}/empty"],
            "holds no analysis, scan, evaluation or choice (it holds nothing)",
        ),
        (["{f}/source.npz"], "source.npz' is a file of features; analyse it first"),
        (["{f}/cut/cut.tta"], "cut.tta' is damaged or not a saved analysis"),
        (
            ["{f}/one", "--source", "{f}/source.npz"],
            "target: give both --source and --target, or neither",
        ),
        (
            ["{f}/one", "--source", "{f}/none.npz", "--target", "{f}/target.npz"],
            "source: there is no file",
        ),
        (
            ["{f}/cut", "--source", "{f}/source.npz", "--target", "{f}/target.npz"],
            "features belong to a single analysis",
        ),
        (["{f}/one", "--out", "{f}/page.txt"], "page.txt' is not .html or .htm"),
        (["{f}/one", "--out", "{f}/empty"], "empty' is not .html or .htm"),
        (["{f}/one", "--top", "0"], "top: found 0; give at least 1"),
        (["{f}/one", "--top", "x"], "argument --top: invalid int value"),
        (["memory://scans/s"], "out: name a file for the page of 'memory://scans/s'"),
        ([], "the following arguments are required: FILE|DIR"),
    ],
)
def test_wrong_calls_are_one_line_and_status_2(folder, words, says, capsys):
    before = sorted(folder.rglob("*"))
    assert run("report", *[word.format(f=folder) for word in words]) == 2
    out, error = capsys.readouterr()
    assert not out
    assert error.count("\n") == 1
    assert says in error
    assert sorted(folder.rglob("*")) == before


def test_help_teaches(capsys):
    assert run("report", "--help") == 0
    said = capsys.readouterr().out
    assert "tta-jax report scan --top 50" in said
    assert "An analysis does not hold the features" in " ".join(said.split())
