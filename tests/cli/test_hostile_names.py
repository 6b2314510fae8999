"""Names that steer terminals, run scripts, leave folders or fill pages, through the
commands and what they write.
"""

import csv
import os
import re

import numpy as np
import pytest

from tta_jax._internal.tables import read_csv, write_csv
from tta_jax._internal.text import printable
from tta_jax.cli._terminal import as_markdown
from tta_jax.cli.main import main
from tta_jax.data import Features, save_features
from tta_jax.report.html.page import Page

NAMES = {
    "script": "<script>alert(1)</script>",
    "colour": "\x1b[31mred\x1b[0m\x07",
    "title": "\x1b]0;owned\x07\x9b31m",
    "lines": "one\ntwo\r\nthree\u2028four",
    "turned": "a\u202egnp.exe",
    "up": "../../../tmp/x",
    "formula": '=HYPERLINK("http://x")',
    "long": "n" * 5000,
    "table": "a|b`c`[d](javascript:e)",
}
_RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]")


def harmless(text):
    assert not _RAW.search(text)
    assert "<script>alert" not in text


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """A folder to work in; at the end nothing may lie beside it."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    before = set(os.listdir(tmp_path))
    yield work
    assert set(os.listdir(tmp_path)) - before <= {"cache", "tensorflow_datasets"}


def features(name, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(40) % 2
    return Features(
        (rng.normal(size=(40, 3)) + 3 * labels[:, None]).astype(np.float32),
        labels,
        (name, "other"),
        provenance={"encoder": name, "data": name, "split": name},
    )


@pytest.mark.parametrize("case", NAMES)
def test_features_with_such_classes_and_encoders(case, inside, capsys):
    name = NAMES[case]
    for place in ("a", "b"):
        save_features(inside / f"{place}.npz", features(name, ord(place)))
    out = ["--out", "out"]
    scores = ["metrics", "--features", "b.npz", "--source", "a.npz"]
    commands = [
        ["info", "a.npz"],
        ["info", "a.npz", "--json"],
        ["analyze", "--source", "a.npz", "--target", "b.npz", "--steps", "0", *out],
        ["report", "out"],
        ["info", "out/analysis.tta"],
        [*scores, "--metrics", "logme"],
        [*scores, "--metrics", "logme", "--csv"],
    ]
    for command in commands:
        code = main(command)
        said = capsys.readouterr()
        assert code in (0, 1), (command, said.err)
        assert not _RAW.search(said.out + said.err)
    written = sorted(p.name for p in (inside / "out").iterdir())
    assert {"analysis.tta", "report.html", "result.json", "summary.txt"} <= {*written}
    for file in ("summary.txt", "report.html"):
        text = (inside / "out" / file).read_text()
        assert not _RAW.search(text)
    harmless((inside / "out" / "report.html").read_text())


@pytest.mark.parametrize("case", NAMES)
def test_scores_with_such_names(case, inside, capsys):
    name = NAMES[case]
    rows = [
        {"encoder": e, "target": t, "accuracy": i / 7 + j / 9, name: float(i - j)}
        for i, e in enumerate((name, "b", "c", "d"))
        for j, t in enumerate((name, "y", "z"))
    ]
    (inside / "s.csv").write_text(write_csv(rows))
    base = ["evaluate", "s.csv", "--truth", "s.csv", "--replicates", "10"]
    for more in ([], ["--csv"], ["--markdown"], ["--per-target"], ["--out", "out"]):
        code = main([*base, *more])
        said = capsys.readouterr()
        assert code == 0, said.err
        for text in (said.out, said.err):
            assert not _RAW.search(text)
            if "--markdown" in more:
                harmless(text)
    assert main(["report", "out"]) == 0
    capsys.readouterr()
    harmless((inside / "out" / "report.html").read_text())
    assert not _RAW.search((inside / "out" / "summary.txt").read_text())
    assert not _RAW.search((inside / "out" / "table.csv").read_text())


@pytest.mark.parametrize("case", [*NAMES, "nothing"])
@pytest.mark.parametrize(
    "command",
    [
        ["info"],
        ["analyze", "--source", "a.npz", "--target"],
        ["report"],
        ["rank"],
        ["metrics", "--features"],
        ["scan", "--dry-run", "--sources"],
        ["scan", "--sources", "a.npz", "--dry-run", "--pairs"],
        ["evaluate"],
        ["extract", "--encoder", "pixels", "--out", "o.npz"],
        ["data", "prepare"],
    ],
)
def test_paths_that_are_not_there(case, command, inside, capsys):
    name = NAMES.get(case, "a\0b")
    save_features(inside / "a.npz", features("a"))
    code = main([*command, name])
    said = capsys.readouterr()
    assert code == 2
    assert not _RAW.search(said.out + said.err)
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+a", "-a", "@a", "'=a", "''-a", "'a", "-5", "-1e3", "a=b", "", "'"],
)
def test_cells_of_csv_are_read_as_they_were(text, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(write_csv([{"a": text, "b": -2.5, text or "c": 1}]))
    rows, header = read_csv(path, "scores")
    assert header == list(dict.fromkeys(["a", "b", text or "c"]))
    assert rows[0]["a"] == text
    assert rows[0]["b"] == "-2.5"
    with path.open(newline="") as stream:
        for cell in (c for line in csv.reader(stream) for c in line):
            assert cell[:1] not in ("=", "+", "@")
            assert not cell.startswith("-") or float(cell) < 0


def test_a_line_of_csv_stays_a_line():
    assert write_csv([{"a\nb": "c\r\nd"}]).splitlines() == ["a\\nb", "c\\r\\nd"]


@pytest.mark.parametrize("case", NAMES)
def test_cells_of_markdown_and_html(case):
    name = NAMES[case]
    text = as_markdown([{name: name, "value": 1.0}], name)
    harmless(text)
    assert len(text.splitlines()) == 5
    assert all(
        len(re.findall(r"(?<!\\)\|", line)) == 3 for line in text.splitlines()[2:]
    )
    page = Page(name).section(name).text(name).note(name).items([name])
    page.table([{name: name}], caption=name).preformatted(name, name)
    harmless(page.html())


def test_what_is_escaped():
    assert printable("a\x1b[0m\n\x9b\u202e\x7f") == r"a\x1b[0m\n\x9b\u202e\x7f"
    assert printable("a\nb", keep="\n") == "a\nb"
    assert printable("née 👩‍👩‍👧 \\n") == "née 👩‍👩‍👧 \\n"
