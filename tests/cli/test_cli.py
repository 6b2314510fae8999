"""The commands as a user runs them: what they print, what they write, how they
refuse.
"""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import tta_jax as tta
from tests.typed import held_out
from tta_jax.cli.main import main
from tta_jax.cli.parser import make_parser


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    for name, n in (("source", 200), ("target", 150)):
        labels = np.arange(n) % 3
        features = rng.normal(size=(n, 6))
        features[np.arange(n), labels] += 3
        np.savez(
            folder / f"{name}.npz",
            features=features,
            labels=labels,
            class_names=["ant", "bee", "cat"],
        )
        np.save(folder / f"{name}.npy", features)
        np.save(folder / f"{name}_labels.npy", labels)
    np.savez(folder / "head.npz", weight=np.eye(3, 6) * 2)
    np.savez(folder / "wide.npz", features=rng.normal(size=(150, 7)), labels=labels)
    np.savez(
        folder / "single.npz",
        features=rng.normal(size=(150, 6)),
        labels=np.zeros(150, int),
    )
    np.savez(folder / "nan.npz", features=np.full((150, 6), np.nan), labels=labels)
    np.savez(folder / "text.npz", weight=np.array([["a"]]))
    (folder / "array.npz").write_bytes((folder / "source.npy").read_bytes())
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
    assert {p.name for p in out.iterdir()} == {
        "analysis.tta",
        "result.json",
        "summary.txt",
        "figure.png",
    }
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert tta.Analysis.load(out / "analysis.tta").held_out is not None
    assert run("info", out / "analysis.tta") == 0
    assert "Verdict" in capsys.readouterr().out


def test_analyze_json_and_npy_pairs(files, capsys):
    def pair(name):
        return f"{files / name}.npy,{files / name}_labels.npy"

    assert (
        run(
            "analyze",
            "--source",
            pair("source"),
            "--target",
            pair("target"),
            "--rungs",
            "tight",
            "--json",
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["held_out"]["tight"] >= found["target_loss"]
    assert found["held_out"]["oscillation"] is None


def strict(text):
    """JSON as other readers see it: NaN and Infinity are not part of it."""

    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_info(files, tmp_path, capsys):
    assert run("info", files / "target.npz", "--json") == 0
    found = strict(capsys.readouterr().out)
    assert found["classes"] == {"ant": 50, "bee": 50, "cat": 50}
    # The deviation of a constant 0.1 in float32 is not quite zero, that of large
    # numbers not finite.
    features = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    features[:, 0], features[:, 1], features[1] = (
        0.1,
        features[:, 1] * 1e37,
        features[0],
    )
    np.savez(tmp_path / "odd.npz", features=features)
    assert run("info", tmp_path / "odd.npz", "--json") == 0
    found = strict(capsys.readouterr().out)
    assert (found["constant features"], found["exact copies"]) == (1, 1)
    assert found["feature deviation"] > 1e36


def test_json_of_a_saved_analysis_holds_no_infinities(files, tmp_path, capsys):
    source, target = (
        tta.Task.from_arrays(**np.load(files / f"{name}.npz"))
        for name in ("source", "target")
    )
    result = tta.analyze(
        source, None, target, tta.Config(rungs="tight", clip=float("inf"), bootstrap=0)
    )
    broken = dataclasses.replace(
        result.bound, target_loss=float("nan"), target_accuracy=float("inf")
    )
    dataclasses.replace(result, bound=broken, held_out=None).save(tmp_path / "a.tta")
    assert run("info", tmp_path / "a.tta", "--json") == 0
    found = strict(capsys.readouterr().out)
    assert (
        found["target_loss"],
        found["target_accuracy"],
        found["config"]["clip"],
    ) == (None, None, None)


def test_every_field_of_the_configuration_has_a_flag():
    args = vars(make_parser().parse_args(["analyze", "--source", "a", "--target", "b"]))
    assert {f.name for f in dataclasses.fields(tta.Config)} <= set(args)
    args = make_parser().parse_args(
        [
            "analyze",
            "--source",
            "a",
            "--target",
            "b",
            "--clip-loss",
            "3",
            "--bootstrap",
            "9",
            "--no-standardize",
        ]
    )
    assert (args.clip_loss, args.bootstrap, args.standardize, args.refit_head) == (
        3.0,
        9,
        False,
        None,
    )


@pytest.mark.parametrize("part", ["nothing", "certificate", "held_out"])
def test_demo_says_when_a_certificate_does_not_hold(
    part, files, tmp_path, monkeypatch, capsys
):
    """Without training: what the demo makes of the results is the question here."""
    from tta_jax import data, probes
    from tta_jax.cli import demo
    from tta_jax.data import digits
    from tta_jax.data.encoders import small_cnn

    monkeypatch.setattr(
        digits, "load_digits", lambda: (np.zeros((900, 28, 28)), np.arange(900) % 10)
    )
    monkeypatch.setattr(small_cnn, "train_cnn", lambda *_, **__: None)

    def drawn(images):
        return np.random.default_rng(0).normal(size=(len(images), 2))

    monkeypatch.setattr(
        data, "extract_features", lambda _, images, **__: data.Features(drawn(images))
    )
    monkeypatch.setattr(
        probes,
        "linear_probe",
        lambda *_: probes.ProbeResult(1.0, 0.5, 0.1, 0.5, 150, 1.6, l2=0.1),
    )
    monkeypatch.setattr(demo, "_DEMO_ITEMS", 60)
    source, target = (
        tta.Task.from_arrays(**np.load(files / f"{name}.npz"))
        for name in ("source", "target")
    )
    result = tta.analyze(source, None, target, tta.Config(rungs="tight"))

    def fails(certificate):
        return dataclasses.replace(certificate, holds=False)

    if part == "certificate":
        result = dataclasses.replace(result, certificate=fails(result.certificate))
    if part == "held_out":
        held = held_out(result)
        held = dataclasses.replace(held, certificate=fails(held.certificate))
        result = dataclasses.replace(result, held_out=held)
    monkeypatch.setattr(demo, "run_analysis", lambda *_: result)
    assert run("demo", "--json", "--out", tmp_path) == (0 if part == "nothing" else 1)
    assert len(strict(capsys.readouterr().out)) == 7


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
        (["--target", "target.npz", "--head", "text.npz"], "head: "),
        (["--target", "array.npz"], "damaged"),
        (["--target", "target.npz", "--seed", str(2**70)], "--seed"),
        (["--target", "target.npz", "--seed", "-1"], "--seed"),
        (["--target", "target.npz", "--steps", "2.5"], "invalid int"),
        (["--target", "target.npz", "--epsilon", "nan"], "epsilon"),
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
    assert (
        run(
            "analyze",
            "--source",
            files / "source.npz",
            "--target",
            target,
            "--out",
            target,
        )
        == 2
    )
    assert "directory" in capsys.readouterr().err


def test_help_teaches_without_importing_jax():
    code = (
        "import sys; from tta_jax.cli.main import main; main(['--help']); assert 'jax' "
        "not in sys.modules"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert "examples:" in out


@pytest.mark.parametrize("home", ["writable", "none"])
def test_compilations_are_kept_where_there_is_a_home(home, tmp_path):
    code = """
import jax
from tta_jax.cli._terminal import keep_compilations
keep_compilations()
jax.jit(lambda x: jax.numpy.linalg.qr(x @ x)[0].sum())(jax.numpy.ones((9, 9)))
print(jax.config.jax_compilation_cache_dir)
"""
    place = tmp_path if home == "writable" else "/dev/null"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {
        "XDG_CACHE_HOME": str(place)
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    kept = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert bool(kept) == (home == "writable")
    assert done.stdout.strip() == (str(kept[0].parent) if kept else "None")
    assert not done.stderr
