"""How related a source is, as `analyze` and scans tell it."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

import tta_jax as tta
from tests.scans.scan_tasks import task
from tests.typed import relatedness
from tta_jax.bounds.chain import RUNGS

KEY = jax.random.key(5)
CONFIG = tta.Config(bootstrap=40, rungs="tight")
SOURCE = task(1, classes=6, items=400, dim=12, name="source")
TARGET = task(1, classes=4, items=300, dim=12, name="target")


def shuffled(tasks):
    labels = np.random.default_rng(0).permutation(np.asarray(tasks.labels))
    return dataclasses.replace(tasks, labels=labels)


@pytest.fixture(scope="module")
def result():
    return tta.analyze(SOURCE, None, TARGET, CONFIG, KEY)


def test_both_chains_hold_and_end_in_one_value(result):
    related = result.relatedness
    for bound in (related.bound, related.theorem_bound):
        values = [bound.target_loss, *(getattr(bound, rung) for rung in RUNGS)]
        for low, high in itertools.pairwise(values):
            assert low <= high + 1e-12 * (1 + abs(low))
        assert bound.oscillation == bound.lipschitz == bound.theorem
    assert related.certificate.holds
    assert related.certificate.directed.gap == 0
    assert related.bound.directed <= related.theorem_bound.directed + 0.2
    assert related.theorem_bound.theorem <= related.bound.theorem + 0.2
    entropy = related.bound.prior_entropy
    assert related.value == 1 - related.bound.directed / entropy
    assert related.capped <= related.bound.directed + 1e-9
    assert related.items == result.held_out.items


def test_classes_are_assigned_one_to_one(result):
    assigned = result.relatedness.assignment
    assert len(assigned) == TARGET.num_classes == len(set(assigned))
    assert set(assigned) <= set(range(SOURCE.num_classes))


@pytest.mark.parametrize("who", ["source", "target"])
def test_shuffled_labels_leave_nothing_to_say(who):
    pair = {"source": SOURCE, "target": TARGET}
    pair[who] = shuffled(pair[who])
    found = tta.analyze(pair["source"], None, pair["target"], CONFIG, KEY)
    related = relatedness(found)
    entropy = related.bound.prior_entropy
    assert related.bound.directed > 0.95 * entropy
    assert related.theorem_bound.theorem > 0.95 * entropy


def test_it_is_saved_and_written_as_json(result, tmp_path):
    result.save(tmp_path / "analysis.tta")
    loaded = tta.Analysis.load(tmp_path / "analysis.tta")
    assert loaded.relatedness == result.relatedness
    told = result.to_dict()["relatedness"]
    assert told["value"] == result.relatedness.value
    assert told["chain"]["directed"] == result.relatedness.bound.directed
    assert "How related is the source?" in result.summary()


def test_folds_are_evaluated_together():
    config = dataclasses.replace(CONFIG, folds=3)
    found = tta.analyze(SOURCE, None, TARGET, config, KEY)
    assert relatedness(found).items == len(TARGET)
    assert relatedness(found).certificate.holds


def test_without_a_hold_out_there_is_none():
    config = dataclasses.replace(CONFIG, holdout=0)
    assert tta.analyze(SOURCE, None, TARGET, config, KEY).relatedness is None


@pytest.mark.parametrize("folds", [0, 2])
def test_screening_has_the_same_figures(folds):
    config = dataclasses.replace(CONFIG, folds=folds, bootstrap=0)
    found = relatedness(tta.analyze(SOURCE, None, TARGET, config, KEY))
    rows = tta.scan([SOURCE], [TARGET], refine=1, config=config, key=KEY)
    row = rows.table("screen").to_pylist()[0]
    wanted = {
        "relatedness": found.value,
        "star_directed": found.bound.directed,
        "star_theorem": found.theorem_bound.theorem,
    }
    for name, value in wanted.items():
        np.testing.assert_allclose(row[name], value, rtol=2e-3, err_msg=name)
    # A refined pair is ranked by what screening computed of it.
    best = rows.rank(by="relatedness")[0]
    assert best["stage"] == "refine"
    assert best["relatedness"] == row["relatedness"]


def test_relatedness_differs_where_loss_alone_would_not():
    """A source whose classes lie apart serves better than one whose classes merge."""
    blurred = np.asarray(SOURCE.features) + 3 * np.random.default_rng(1).normal(
        size=SOURCE.features.shape
    )
    worse = dataclasses.replace(SOURCE, features=blurred.astype(np.float32))
    close, far = (
        relatedness(tta.analyze(one, None, TARGET, CONFIG, KEY))
        for one in (SOURCE, worse)
    )
    assert close.value > far.value + 0.1
