"""The README is true: its Python runs, its page of options is the code's."""

import re
from pathlib import Path

import pytest

from tta_jax.config import FEATURE_MAPS, markdown_table
from tta_jax.core.feature_maps import FAMILIES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.S):
        exec(compile(block, "README.md", "exec"), scope)
    assert "Verdict" in capsys.readouterr().out
    assert (tmp_path / "pair.tta").exists()
    assert abs(scope["gradient"]["kernel"][...]).max() > 0


def test_the_page_of_the_configuration_is_the_code():
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page.endswith("\n\n" + markdown_table())


def test_the_names_of_maps_are_those_of_the_families():
    assert set(FEATURE_MAPS) - {"auto", "logit_affine", "star"} == set(FAMILIES)
