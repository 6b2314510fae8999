"""The commands as a user runs them: what they print, what they write, how they refuse."""

import json
import subprocess
import sys

import numpy as np
import pytest

import tta_jax as tta
from tta_jax.cli import main


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    for name, n in (("source", 200), ("target", 150)):
        labels = np.arange(n) % 3
        features = rng.normal(size=(n, 6))
        features[np.arange(n), labels] += 3
        np.savez(folder / f"{name}.npz", features=features, labels=labels, class_names=["ant", "bee", "cat"])
        np.save(folder / f"{name}.npy", features)
        np.save(folder / f"{name}_labels.npy", labels)
    np.savez(folder / "head.npz", weight=np.eye(3, 6) * 2)
    np.savez(folder / "wide.npz", features=rng.normal(size=(150, 7)), labels=labels)
    np.savez(folder / "single.npz", features=rng.normal(size=(150, 6)), labels=np.zeros(150, int))
    np.savez(folder / "nan.npz", features=np.full((150, 6), np.nan), labels=labels)
    (folder / "cut.npz").write_bytes((folder / "source.npz").read_bytes()[:900])
    return folder


def run(*words):
    return main([str(w) for w in words])


def test_analyze_prints_a_verdict_and_writes_everything(files, tmp_path, capsys):
    out = tmp_path / "out"
    code = run(
        "analyze",
        "--source",
        files / "source.npz",
        "--target",
        files / "target.npz",
        "--out",
        out,
        "--head",
        files / "head.npz",
    )
    printed = capsys.readouterr().out
    assert code == 0
    assert "Verdict" in printed
    assert "bee" in printed
    assert {p.name for p in out.iterdir()} == {"analysis.tta", "result.json", "summary.txt", "figure.png"}
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert tta.Analysis.load(out / "analysis.tta").held_out is not None
    assert run("info", out / "analysis.tta") == 0
    assert "Verdict" in capsys.readouterr().out


def test_analyze_json_and_npy_pairs(files, capsys):
    pair = lambda name: f"{files / name}.npy,{files / name}_labels.npy"
    assert run("analyze", "--source", pair("source"), "--target", pair("target"), "--rungs", "tight", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["held_out"]["tight"] >= found["target_loss"]
    assert found["held_out"]["oscillation"] is None


def test_info(files, capsys):
    assert run("info", files / "target.npz", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["classes"] == {"ant": 50, "bee": 50, "cat": 50}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--target", "wide.npz"], "features"),
        (["--target", "single.npz"], "single class"),
        (["--target", "nan.npz"], "NaN"),
        (["--target", "cut.npz"], "damaged"),
        (["--target", "absent.npz"], "no file"),
        (["--target", "target.npz", "--objective", "best"], "objective"),
        (["--target", "target.npz", "--holdout", "2"], "holdout"),
        (["--target", "target.npz", "--holdout", "much"], "invalid float"),
        (["--target", "target.npz", "--head", "target.npz"], "weight"),
        ([], "--target"),
    ],
)
def test_wrong_calls_are_one_line_and_status_2(files, capsys, words, says):
    words = [str(files / w) if w.endswith(".npz") else w for w in words]
    assert run("analyze", "--source", files / "source.npz", *words) == 2
    error = capsys.readouterr().err.strip()
    assert says in error
    assert len(error.splitlines()) == 1


def test_out_must_not_be_a_file(files, capsys):
    target = files / "target.npz"
    assert run("analyze", "--source", files / "source.npz", "--target", target, "--out", target) == 2
    assert "directory" in capsys.readouterr().err


def test_help_teaches_without_importing_jax():
    code = "import sys; from tta_jax.cli import main; main(['--help']); assert 'jax' not in sys.modules"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "examples:" in out
