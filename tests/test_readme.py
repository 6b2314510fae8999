"""The README is true: its Python runs, its table of defaults is the code's."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest

from tta_jax import Config

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.mark.slow
def test_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.S):
        exec(compile(block, "README.md", "exec"), scope)
    assert "Verdict" in capsys.readouterr().out
    assert (tmp_path / "pair.tta").exists()
    assert abs(scope["gradient"]["kernel"][...]).max() > 0


def test_table_of_defaults_is_the_code():
    table = dict(
        re.findall(
            r"^\| `(\w+)` \| `([^`]+)` \|",
            README.split("## Config")[1].split("## API")[0],
            re.M,
        )
    )
    assert {f.name: f.default for f in dataclasses.fields(Config)} == {
        k: ast.literal_eval(v) for k, v in table.items()
    }
