"""`tta-jax choose` and `tta-jax predict`."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tta_jax.cli.main import main

MODEL = """
import jax.numpy as jnp
from flax import nnx

class Net(nnx.Module):
    def __init__(self, scale):
        self.scale = nnx.Param(jnp.float32(scale))

    def features(self, x):
        flat = x.reshape(x.shape[0], -1)
        return jnp.stack([flat.mean(1) * self.scale[...], flat[:, 0], flat[:, 1]], 1)

def good():
    return Net(1.0)

def poor():
    return Net(0.0)
"""


def run(*words):
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, start in (("dark", 0), ("light", 90)):
        (folder / "all" / name).mkdir(parents=True)
        (folder / "new" / name).mkdir(parents=True)
        for i in range(132):
            pixels = rng.integers(start, start + 150, (8, 8, 3), np.uint8)
            where = "all" if i < 120 else "new"
            Image.fromarray(pixels).save(folder / where / name / f"{i}.png")
    (folder / "net.py").write_text(MODEL)
    return folder


@pytest.fixture(scope="module")
def encoders(photos):
    file = photos / "net.py"
    options = "#preprocess=unit,size=8"
    return [f"module:{file}:{name}{options}" for name in ("good", "poor")]


@pytest.fixture(scope="module")
def choice(photos, encoders, tmp_path_factory):
    out = tmp_path_factory.mktemp("choice")
    words = ("choose", "--data", photos / "all", "--encoders", ",".join(encoders))
    assert run(*words, "--out", out, "--no-cache", "--until", "sure") == 0
    return out


def test_choose_writes_everything(choice, encoders):
    assert {path.name for path in choice.iterdir()} >= {
        "choice.tta",
        "choice.json",
        "table.csv",
        "summary.txt",
        "figure.png",
    }
    found = json.loads((choice / "choice.json").read_text())
    assert found["best"] == encoders[0]
    assert found["equivalent"] == encoders[:1]
    assert (choice / "summary.txt").read_text().startswith(f"Take {encoders[0]}")
    with (choice / "table.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["encoder"] for row in rows] == encoders


def test_predict_serves_the_choice_in_a_fresh_process(choice, photos, tmp_path):
    out = tmp_path / "predicted.csv"
    words = ["predict", choice, "--data", photos / "new", "--out", out, "--no-cache"]
    command = [sys.executable, "-m", "tta_jax", *map(str, words), "--probabilities"]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "right for 24 of 24 labelled items" in done.stderr
    with out.open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 24
    for row in rows:
        assert row["class"] in row["item"]  # the folder names the class
        total = float(row["p dark"]) + float(row["p light"])
        assert total == pytest.approx(1)


def test_the_report_and_info_know_choices(choice, capsys):
    assert run("report", choice) == 0
    page = (choice / "report.html").read_text()
    assert "data:image/svg+xml;base64," in page
    assert "Every classifier" in page
    capsys.readouterr()
    assert run("info", choice / "choice.tta") == 0
    assert capsys.readouterr().out.startswith("Take module:")


@pytest.fixture
def features(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 3
    for name, noise in (("a", 0.5), ("b", 4.0)):
        (tmp_path / name).mkdir()
        x = 3 * np.eye(3)[labels] + noise * rng.normal(size=(240, 3))
        np.savez(tmp_path / name / "task.npz", features=x, labels=labels)
    return tmp_path


@pytest.mark.parametrize("shape", ["--json", "--csv", "--markdown", None])
def test_choose_among_ready_features(features, shape, capsys):
    words = ("choose", "--features", features, *([shape] if shape else []))

    assert run(*words) == 0
    out = capsys.readouterr().out
    if shape == "--json":
        assert json.loads(out)["best"] == "a"
    elif shape == "--csv":
        assert out.splitlines()[1].startswith("a,")
    else:
        assert "a" in out
        assert "best" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "data: give --data and --encoders"),
        (("--data", "x"), "data: give --data and --encoders"),
        (("--features", "nowhere"), "features: there is no file or folder 'nowhere'"),
    ],
)
def test_choose_refuses_in_one_line(words, message, capsys):
    assert run("choose", *words) == 2
    assert message in capsys.readouterr().err


def test_predict_refuses_what_is_no_choice(tmp_path, photos, capsys):
    assert run("predict", tmp_path, "--data", photos / "new") == 2
    assert "holds no choice.tta" in capsys.readouterr().err


def test_a_choice_of_ready_features_has_no_encoder_to_predict_with(
    features, photos, tmp_path, capsys
):
    assert run("choose", "--features", features, "--out", tmp_path / "out") == 0
    capsys.readouterr()

    assert run("predict", tmp_path / "out", "--data", photos / "new") == 2
    assert "encoder: " in capsys.readouterr().err
