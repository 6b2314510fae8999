"""A refined row of a scan has the figures that `analyze` has for its pair."""

from typing import Any

import jax
import numpy as np
import pytest

import tta_jax as tta
from tests.scans.scan_tasks import task
from tests.typed import held_out
from tta_jax.analysis.analyze import evaluation_parts
from tta_jax.bounds.chain import Bound
from tta_jax.scans.api import prepare

KEY = jax.random.key(3)
CONFIG = tta.Config(bootstrap=50)
# Two shapes of sources and three of targets, since every pair of them is compiled.
SOURCES = [
    task(1, classes=4, items=200, dim=12, name="s0"),
    task(2, classes=10, items=500, dim=12, name="s1"),
    task(3, classes=4, items=200, dim=12, name="s2"),
    task(4, classes=10, items=500, dim=12, name="s3"),
]
TARGETS = [
    task(11, classes=4, items=160, dim=12, name="t0"),
    task(12, classes=8, items=300, dim=12, name="t1"),
    task(13, classes=2, items=210, dim=12, name="t2"),
    task(14, classes=8, items=300, dim=12, name="t3"),
    task(15, classes=4, items=160, dim=12, name="t4"),
]
# Merged shapes change the order in which float32 sums are taken.
TOLERANCE: dict[str, Any] = {"rtol": 3e-6, "atol": 1e-7}


@pytest.fixture(scope="module")
def rows():
    result = tta.scan(SOURCES, TARGETS, refine="all", config=CONFIG, key=KEY)
    return {(r["source"], r["target"]): r for r in result.table("refine").to_pylist()}


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda t: t.name)
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_a_refined_row_has_the_figures_of_analyze(source, target, rows):
    row = rows[source.name, target.name]
    result = tta.analyze(source, None, target, CONFIG, KEY)
    held = held_out(result)
    for name in Bound.__dataclass_fields__:
        value = np.inf if row[name] is None else row[name]
        np.testing.assert_allclose(
            value, getattr(held.bound, name), **TOLERANCE, err_msg=name
        )
    certificate = held.certificate
    figures = {
        "score": result.score,
        "score_low": held.intervals["score"][0],
        "score_high": held.intervals["score"][1],
        "probe_loss": held.probe.loss,
        "probe_accuracy": held.probe.accuracy,
        "directed_wasserstein_lower": certificate.directed.lower,
        "oscillation_wasserstein_lower": certificate.oscillation.lower,
        "wasserstein_lower": certificate.lipschitz.lower,
        "ridge": result.info["ridge"],
        "scale": result.info["scale"],
        "inner_loss": result.info["inner_loss"],
    }
    for name, value in figures.items():
        np.testing.assert_allclose(row[name], value, **TOLERANCE, err_msg=name)
    # With equal class shares the offset changes no probability, and rounding decides.
    prior = np.asarray(result.transforms.prior)
    prior = prior[prior > 0]
    if not np.allclose(prior, prior[0]):
        assert row["offset"] == result.info["offset"]
    assert row["items"] == held.items
    assert row["words"] == result.info["words"]


@pytest.mark.parametrize("folds", [0, 3])
def test_both_split_alike(folds):
    config = tta.Config(folds=folds)
    job = prepare(SOURCES, TARGETS, config=config, key=KEY)
    sources = job.plan.sources[: job.plan.given]
    for source, given in zip(sources, SOURCES, strict=True):
        for target, wanted in zip(job.plan.targets, TARGETS, strict=True):
            parts = evaluation_parts(given, wanted, config, KEY)
            assert len(parts) == max(1, folds)
            for part, s, t in zip(parts, source.parts, target.parts, strict=True):
                scanned = (s.source_learn, s.source_held, t.learn, t.held)
                for mine, theirs in zip(part, scanned, strict=True):
                    np.testing.assert_array_equal(mine, theirs)
