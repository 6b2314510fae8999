"""Sources with fewer classes than a target are divided, in scans as in `analyze`."""

import dataclasses

import jax
import numpy as np
import pytest

import tta_jax as tta
from tests.scans.scan_tasks import task
from tests.typed import held_out, relatedness
from tta_jax.bounds.chain import Bound

KEY = jax.random.key(4)
CONFIG = tta.Config(bootstrap=0, rungs="tight")
SOURCES = [
    task(1, classes=2, items=200, dim=12, name="two"),
    task(2, classes=6, items=200, dim=12, name="six"),
    task(3, classes=3, items=40, dim=12, name="small"),
]
TARGETS = [
    task(11, classes=4, items=160, dim=12, name="four"),
    task(12, classes=2, items=160, dim=12, name="pair"),
]


@pytest.fixture(scope="module")
def scan():
    return tta.scan(SOURCES, TARGETS, refine="all", config=CONFIG, key=KEY)


def test_rows_name_the_sources_that_were_given(scan):
    assert [s["name"] for s in scan.manifest["sources"]] == ["two", "six", "small"]
    rows = scan.table("refine").to_pylist()
    assert len(rows) == len(SOURCES) * len(TARGETS)
    names = {(s.name, t.name) for s in SOURCES for t in TARGETS}
    assert {(r["source"], r["target"]) for r in rows} == names
    assert all(r["status"] == "ok" for r in rows)


@pytest.mark.parametrize("source", SOURCES, ids=lambda t: t.name)
def test_a_divided_source_has_the_figures_of_analyze(source, scan):
    found = tta.analyze(source, None, TARGETS[0], CONFIG, KEY)
    row = next(
        r
        for r in scan.table("refine").to_pylist()
        if (r["source"], r["target"]) == (source.name, "four")
    )
    for name in Bound.__dataclass_fields__:
        if row[name] is not None:
            value = getattr(held_out(found).bound, name)
            np.testing.assert_allclose(row[name], value, rtol=3e-6, err_msg=name)
    related = next(
        r["relatedness"]
        for r in scan.table("screen").to_pylist()
        if (r["source"], r["target"]) == (source.name, "four")
    )
    if source.name == "small":
        assert related is None
        assert found.relatedness is None
        assert any("must share them" in warning for warning in found.warnings)
    else:
        np.testing.assert_allclose(related, relatedness(found).value, atol=2e-3)


def test_it_can_be_left_out_and_a_head_of_the_users_stays():
    source, target = SOURCES[0], TARGETS[0]
    plain = dataclasses.replace(CONFIG, divide_source=False)
    found = tta.analyze(source, None, target, plain, KEY)
    assert found.source_classes == source.class_names
    head = tta.fit_head(source, key=KEY)
    found = tta.analyze(source, head, target, CONFIG, KEY)
    assert found.source_classes == source.class_names
    assert found.relatedness is None
    assert any("must share them" in warning for warning in found.warnings)
    divided = tta.analyze(source, None, target, CONFIG, KEY)
    assert len(divided.source_classes) == 8
