"""`tta-jax scan` and `tta-jax rank`."""

import csv
import io
import json

import numpy as np
import pytest

from tests.scans import scan_tasks
from tta_jax.cli.main import main
from tta_jax.data import save_features


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    for kind, tasks in (("s", scan_tasks.sources(3)), ("t", scan_tasks.targets(2))):
        (folder / kind / "deeper").mkdir(parents=True)
        for number, task in enumerate(tasks):
            save_features(
                folder / kind / ("deeper" if number else "") / f"{task.name}.npz", task
            )
    return folder


QUICK = ["--bootstrap", "20", "--sinkhorn-iterations", "50"]


def scan(files, out):
    places = [
        "--sources",
        str(files / "s"),
        "--targets",
        str(files / "t"),
        "--out",
        str(out),
    ]
    return ["scan", *places, "--refine", "1", *QUICK]


@pytest.fixture(scope="module")
def scanned(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "scan"
    assert main(scan(files, out)) == 0
    return out


@pytest.mark.slow
def test_scan_tells_how_it_stands_and_sums_up(files, scanned, capsys):
    # Once more: everything is done already.
    words = scan(files, scanned)
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert "3 sources, 2 targets, 6 pairs: 6 screened, 2 refined, 0 failed" in out
    assert f"tta-jax rank {scanned}" in out
    assert "tta-jax: reading 5 of 5 tasks (100%)" in err
    assert main([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["screened"] == 6
    assert not err


def test_dry_run_computes_what_it_would_take(files, tmp_path, capsys):
    words = [
        "scan",
        "--sources",
        str(files / "s"),
        "--targets",
        str(files / "t"),
        "--dry-run",
        "--refine",
        "0",
        *QUICK,
    ]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert (
        "6 pairs of 3 sources and 2 targets, 0 of them impossible; 0 to refine" in out
    )
    assert "programs to compile" in out
    assert "memory on each of" in out
    assert "time: compilation" in out
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pairs"] == 6


def test_only_some_pairs_and_sources_as_targets(files, tmp_path, capsys):
    (tmp_path / "pairs.csv").write_text("source,target\ns0,s1\ns2,s0\n")
    words = [
        "scan",
        "--sources",
        str(files / "s"),
        "--out",
        str(tmp_path / "o"),
        "--pairs",
        str(tmp_path / "pairs.csv"),
        "--refine",
        "0",
    ]
    assert main([*words, *QUICK, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pairs"] == 2


def test_rank_as_a_table_json_csv_and_markdown(scanned, capsys):
    assert main(["rank", str(scanned), "--target", "t0"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("target t0")
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["1", "2", "3"]
    assert "nats" in err
    assert main(["rank", str(scanned), "--source", "s1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["rank"] for row in rows] == [1, 2]
    assert {row["source"] for row in rows} == {"s1"}
    assert main(["rank", str(scanned), "--csv", "--top", "0"]) == 0
    assert len(list(csv.DictReader(io.StringIO(capsys.readouterr().out)))) == 6
    assert main(["rank", str(scanned), "--markdown", "--by", "tight"]) == 0
    table = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("|")
    ]
    assert len(table) == 8


def test_calls_that_cannot_be(files, scanned, tmp_path, capsys):
    s, t = ["--sources", str(files / "s")], ["--targets", str(files / "t")]
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    cases = [
        (["scan", *s, *t], "out: name a folder"),
        (
            ["scan", "--sources", "nowhere", "--out", "x"],
            "sources: there is no file or folder 'nowhere'",
        ),
        (["scan", "--sources", str(tmp_path / "empty"), "--out", "x"], "holds no .npz"),
        (
            ["scan", *s, "--out", str(tmp_path / "o"), "--pairs", "nowhere.csv"],
            "pairs: there is no file",
        ),
        (
            [
                "scan",
                *s,
                "--out",
                str(tmp_path / "o"),
                "--pairs",
                str(tmp_path / "bad.csv"),
            ],
            "columns source,target",
        ),
        (
            ["scan", *s, "--out", str(tmp_path / "o"), "--processes", "2"],
            "coordinator: give it",
        ),
        (
            ["scan", *s, "--out", str(tmp_path / "o"), "--coordinator", "h:1"],
            "give all three",
        ),
        (
            ["scan", *s, "--out", str(tmp_path / "o"), "--refine", "some"],
            "give a whole number, or all",
        ),
        (
            ["scan", *s, *t, "--out", str(scanned), "--seed", "1", *QUICK],
            "holds another scan: its key is",
        ),
        (
            ["scan", *s, *t, "--out", str(scanned), "--holdout", "0"],
            "a scan compares held-out figures",
        ),
        (["rank", str(tmp_path / "empty")], "holds no scan"),
        (["rank", str(scanned), "--target", "x"], "there is no target 'x'"),
        (["rank", str(scanned), "--by", "x"], "there is no figure 'x'"),
    ]
    for words, said in cases:
        assert main(words) == 2, words
        err = [
            line
            for line in capsys.readouterr().err.splitlines()
            if not line.startswith("tta-jax: reading")
        ]
        assert len(err) == 1
        assert said in err[0]
    assert not (tmp_path / "o").exists()


def test_a_broken_file_is_rows_with_a_reason(files, tmp_path, capsys):
    (tmp_path / "t").mkdir()
    save_features(tmp_path / "t" / "fine.npz", scan_tasks.targets(1)[0])
    (tmp_path / "t" / "broken.npz").write_bytes(b"PK\x03\x04 not much of a file")
    features = np.full((20, 6), np.nan, np.float32)
    np.savez(tmp_path / "t" / "nan.npz", features=features, labels=np.arange(20) % 2)
    words = [
        "scan",
        "--sources",
        str(files / "s"),
        "--targets",
        str(tmp_path / "t"),
        "--out",
        str(tmp_path / "o"),
        "--refine",
        "0",
        *QUICK,
    ]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["screened"], found["failed"]) == (3, 6)
    assert all("file:" in reason for reason in found["reasons"])
