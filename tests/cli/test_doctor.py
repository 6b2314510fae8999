"""`tta-jax doctor` as a user calls it."""

import json

import pytest

from tta_jax.cli.main import main
from tta_jax.data import ENCODERS
from tta_jax.data.encoders.libraries import LIBRARIES
from tta_jax.data.registry import TASKS


def test_the_page_names_versions_devices_caches_encoders_and_tasks(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = tmp_path / "tta_jax" / "features" / "ab"
    kept.mkdir(parents=True)
    (kept / "chunk.npz").write_bytes(b"0" * 3_000_000)
    assert main(["doctor", "--data-dir", str(tmp_path / "data")]) == 0
    page = capsys.readouterr().out
    for said in ("jaxlib", "devices: ", "cpu", "numpy", "pyarrow", *ENCODERS):
        assert said in page
    assert all(f"{prefix}:" in page for prefix in LIBRARIES)
    assert "tasks that are prepared: none" in page
    assert main(["doctor", "--json", "--data-dir", str(tmp_path / "data")]) == 0
    facts = json.loads(capsys.readouterr().out)
    features = next(row for row in facts["caches"] if row["what"] == "features")
    assert (features["files"], features["mb"]) == (1, 3.0)
    assert [row["name"] for row in facts["tasks"]] == list(TASKS)
    assert {row["package"] for row in facts["packages"]} >= {"jax", "flax", "torch"}


def test_secrets_in_the_environment_are_not_shown(capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdef")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["doctor", "--json"]) == 0
    printed = capsys.readouterr().out
    assert "hf_abcdef" not in printed
    assert json.loads(printed)["settings"]["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("extra", ["hub", "data"])
def test_packages_say_which_extra_wants_them(capsys, extra):
    main(["doctor", "--json"])
    packages = json.loads(capsys.readouterr().out)["packages"]
    assert any(extra in row["for"].split(", ") for row in packages)
