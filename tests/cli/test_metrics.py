"""`tta-jax metrics` and `tta-jax evaluate` as a user runs them."""

import csv
import json

import numpy as np
import pytest

import tta_jax as tta
from tta_jax.cli.main import main
from tta_jax.data import Features, save_features

QUICK = ("--metrics", "logme", "knn", "leep")


def run(*words):
    return main([str(word) for word in words])


def rows_of(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two targets under three encoders: folders name them, or the files themselves."""
    where = tmp_path_factory.mktemp("features")
    rng = np.random.default_rng(0)
    for encoder, spread in (("weak", 0.4), ("fair", 1.2), ("strong", 3.0)):
        (where / "f" / encoder).mkdir(parents=True)
        for target in ("cats", "dogs"):
            y = np.arange(60) % 3
            x = (rng.normal(size=(60, 5)) + spread * np.eye(5)[y]).astype(np.float32)
            if encoder == "fair":
                np.savez(where / "f" / encoder / f"{target}.npz", features=x, labels=y)
            else:
                save_features(
                    where / "f" / encoder / f"{target}.npz",
                    Features(x, y, name=target, provenance={"encoder": encoder}),
                )
    (where / "broken").mkdir()
    (where / "broken" / "cats.npz").write_bytes(
        (where / "f" / "fair" / "cats.npz").read_bytes()[:300]
    )
    np.savez(where / "lone.npz", features=x, labels=y)
    np.savez(where / "head.npz", weight=np.eye(3, 5))
    np.savez(where / "wide_head.npz", weight=np.eye(3, 6))
    return where


def test_metrics_of_one_file(folder, capsys):
    assert (
        run("metrics", "--features", folder / "f" / "strong" / "cats.npz", *QUICK) == 0
    )
    printed = capsys.readouterr().out
    assert "cats, strong" in printed
    assert "needs the source head" in printed
    assert (
        run(
            "metrics",
            "--features",
            folder / "lone.npz",
            *QUICK,
            "--head",
            folder / "head.npz",
            "--json",
        )
        == 0
    )
    rows = {row["metric"]: row for row in json.loads(capsys.readouterr().out)}
    task = tta.data.load_features(folder / "lone.npz").task()
    head = tta.SoftmaxHead(np.eye(3, 5), np.zeros(3))
    direct = {
        s.metric: s.value
        for s in tta.metrics.compute(task, head=head, names=["logme", "knn", "leep"])
    }
    assert {name: row["value"] for name, row in rows.items()} == direct


def test_metrics_of_many_files_go_to_a_table(folder, tmp_path, capsys):
    out = tmp_path / "deep" / "scores.csv"
    source = folder / "f" / "strong" / "dogs.npz"
    code = run(
        "metrics",
        "--features",
        folder / "f",
        folder / "broken",
        *QUICK,
        "--source",
        source,
        "--out",
        out,
    )
    printed = capsys.readouterr().out
    assert code == 0
    assert "no leep: there is no source of its encoder (2x)" in printed
    rows = rows_of(out)
    assert {row["encoder"] for row in rows} == {"weak", "fair", "strong", ""}
    broken = [row for row in rows if row["encoder"] == ""]
    assert len(broken) == 3
    assert all("cats.npz" in row["reason"] and row["value"] == "" for row in broken)
    assert (
        run(
            "metrics",
            "--features",
            folder / "f",
            *QUICK,
            "--out",
            tmp_path / "s.parquet",
            "--csv",
        )
        == 0
    )
    assert capsys.readouterr().out.startswith(
        "encoder,source,target,metric,value,reason,seconds\n"
    )
    assert (tmp_path / "s.parquet").exists()


def test_the_list_tells_what_each_metric_needs(capsys):
    assert run("metrics", "--list") == 0
    assert "arXiv 2102.11005" in capsys.readouterr().out
    assert run("metrics", "--list", "--json") == 0
    assert {row["metric"] for row in json.loads(capsys.readouterr().out)} == set(
        tta.metrics.REGISTRY
    )


def test_evaluate_of_features_computes_scores_and_truth(folder, tmp_path, capsys):
    out = tmp_path / "evaluation"
    assert (
        run(
            "evaluate", "--features", folder / "f", *QUICK, "--per-target", "--out", out
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "2 targets, 3 models; truth: accuracy" in printed
    assert "knn *" in printed
    assert "no p-value can be below 0.5" in printed
    assert "blanks of leep: needs the source head" in printed
    files = {
        "evaluation.tta",
        "summary.txt",
        "table.csv",
        "scores.csv",
        "truth.csv",
        "figure.png",
    }
    assert {p.name for p in out.iterdir()} == files
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert run("info", out / "evaluation.tta") == 0
    assert "logme" in capsys.readouterr().out
    again = ("evaluate", out / "scores.csv", "--truth", out / "truth.csv")
    assert run(*again, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (
        found["estimates"]["logme"]
        == tta.Evaluation.load(out / "evaluation.tta").to_dict()["estimates"]["logme"]
    )
    assert run(*again, "--markdown", "--target", "cats", "--statistic", "kendall") == 0
    assert "| score | kendall |" in capsys.readouterr().out
    assert run(*again, "--csv") == 0
    assert capsys.readouterr().out.startswith(
        "score,kind,weighted_tau,low,high,regret_1"
    )


def test_evaluate_on_files_to_test_on(folder, tmp_path, capsys):
    for file in sorted((folder / "f").rglob("*.npz")):
        found = dict(np.load(file))
        found["features"] = found["features"] + np.float32(0.01)
        (tmp_path / "g" / file.parent.name).mkdir(parents=True, exist_ok=True)
        np.savez(tmp_path / "g" / file.parent.name / file.name, **found)
    words = (
        "evaluate",
        "--features",
        folder / "f",
        "--by",
        "knn",
        "--metrics",
        "logme",
    )
    assert run(*words, "--test", tmp_path / "g", "--out", tmp_path / "e", "--json") == 0
    capsys.readouterr()
    assert [row["items"] for row in rows_of(tmp_path / "e" / "truth.csv")] == ["60"] * 6
    assert run(*words, "--test", folder / "f") == 2
    assert (
        "60 items of task 'cats' are among those to learn from"
        in capsys.readouterr().err
    )


def test_each_encoder_has_the_head_that_is_named_after_it(folder, tmp_path, capsys):
    np.savez(tmp_path / "weak.npz", weight=np.eye(3, 5))
    words = ("metrics", "--features", folder / "f", "--metrics", "leep", "--json")
    assert run(*words, "--head", tmp_path / "weak.npz") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["encoder"] for row in rows if row["value"] is not None} == {"weak"}
    assert run(*words, "--head", folder / "head.npz") == 2
    assert (
        "head: nothing is called 'head'; name files after encoders (fair, strong, weak)"
        in capsys.readouterr().err
    )


def test_a_folder_that_is_named_itself_is_still_an_encoders(folder, capsys):
    places = sorted((folder / "f").iterdir())
    assert run("metrics", "--features", *places, "--metrics", "logme", "--json") == 0
    assert {row["encoder"] for row in json.loads(capsys.readouterr().out)} == {
        "weak",
        "fair",
        "strong",
    }


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("metrics",), "features: name files"),
        (
            ("metrics", "--features", "none.npz"),
            "features: there is no file or folder 'none.npz'",
        ),
        (
            ("metrics", "--features", "{f}/lone.npz", "--metrics", "logm"),
            "names: there is no metric 'logm'",
        ),
        (
            ("metrics", "--features", "{f}/lone.npz", "--out", "x.txt"),
            "out: 'x.txt' is not .csv or .parquet",
        ),
        (
            ("metrics", "--features", "{f}/lone.npz", "--source", "{f}/broken"),
            "sources: cats: ",
        ),
        (
            ("metrics", "--features", "{f}/lone.npz", "--head", "none.npz"),
            "head: there is no file",
        ),
        (("evaluate",), "scores: name a scan or tables"),
        (
            ("evaluate", "s.csv", "--truth", "t.csv"),
            "scores: there is no file or scan 's.csv'",
        ),
        (
            ("evaluate", "--features", "{f}/lone.npz"),
            "features: 'lone' does not tell its encoder",
        ),
        (
            ("evaluate", "--features", "{f}/f", "--truth", "t.csv"),
            "truth: found it and features",
        ),
        (
            ("evaluate", "s.csv", "--truth", "t.csv", "--test", "{f}/f"),
            "test: features to test on go with",
        ),
        (
            ("evaluate", "--features", "{f}/f", "--test", "{f}/f/weak"),
            "test: there is no file for 'cats' of encoder 'fair'",
        ),
        (("evaluate", "s.csv", "--truth", "t.csv", "--out", "{f}/lone.npz"), "out: "),
        (
            (
                "evaluate",
                "--features",
                "{f}/f",
                "--metrics",
                "logme",
                "--statistic",
                "tau",
            ),
            "statistic: there is no 'tau'",
        ),
    ],
)
def test_wrong_calls_are_one_line(words, says, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*(word.replace("{f}", str(folder)) for word in words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("tta-jax: " + says)
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_head_that_does_not_fit_is_a_blank(folder, capsys):
    words = (
        "metrics",
        "--features",
        folder / "lone.npz",
        *QUICK,
        "--head",
        folder / "wide_head.npz",
        "--json",
    )
    assert run(*words) == 0
    rows = {row["metric"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["logme"]["value"] is not None
    assert rows["leep"]["value"] is None
    assert rows["leep"]["reason"].startswith("head: its weight has shape (3, 6)")
